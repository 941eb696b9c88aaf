"""The commands of this project; what they share is in scripts/lib/.

It is a package so that an installed package called scripts is not imported in its place.
"""
