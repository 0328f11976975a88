"""The colours of points in figures and curves."""

# Distinct with any colour vision (Okabe and Ito 2008). Their yellow is left out, because it is too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
