"""Loading of models: pipelines, LoRAs, class-conditional networks."""
