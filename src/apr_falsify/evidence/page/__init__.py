"""The page that people read: from a bisection's JSON to one self-contained HTML file."""
