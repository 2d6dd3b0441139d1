"""The endpoints, one module for each group of pages.

A view reads the request, asks `accounts/`, `figures/` or the snapshots for values and renders a template.
Rules about logins belong to `security/`, computation to `figures/`, what views share to `site.py`.
"""
