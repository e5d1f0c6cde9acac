"""`python -m tpcnn.checks FILES...` reads the notebooks that students have handed in."""

from tpcnn.checks.teacher.table import main

main()
