"""Who decides the lengths: pure rules on arrays, no model inside (EVATok sec. 3.2)."""
