"""Estimates of what runs cost before they start: by measured steps, at a stated rate, or by runs that are over."""
