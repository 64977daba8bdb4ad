"""The command line. Imports torch, scikit-learn and rich only inside the commands that need them."""
