"""Ground floor: Postgres, and what Warren keeps in it."""
