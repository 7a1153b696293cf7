"""The training of the inversion adapter and the UNet of any bundle, on a data set in the Dress Code layout."""
