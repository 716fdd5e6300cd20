"""What is told about a file: where each byte goes, as data (`inspection`) and as a page (`html`)."""
