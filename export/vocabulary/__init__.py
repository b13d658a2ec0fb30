"""`export --vocabulary`: which tokens the output head keeps, and what is lost with the others."""
