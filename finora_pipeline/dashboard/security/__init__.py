"""Who may send which request: guard, start link, throttle, identity provider. No page is made here."""
