"""Networks: where they come from, what they compute, and how well."""
