"""encode, decode, cost: what the package promises to its callers."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from conftest import arrays
from deepcomp import entropy, jit
