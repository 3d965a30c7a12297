"""A hunter of silent corruption: random configurations against the unpartitioned model."""
