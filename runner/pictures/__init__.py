"""The report of one run: its rows, thinned as they arrive, and the picture and the page drawn from them."""
