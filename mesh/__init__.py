"""Who is here, who may speak, who leads: identity, links, membership, election. No torch."""
