"""Trains inversion adapter and UNet of any base bundle on a data set in the Dress Code layout."""
