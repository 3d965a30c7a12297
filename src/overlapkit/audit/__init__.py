"""Every configuration and launch script below a folder, judged."""
