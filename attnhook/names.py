"""The public names and the modules that hold them, each imported when its name is first used."""

HOMES = {
    "attnhook.capture.adapters": ("ModelAnatomy", "Readout", "register_adapter"),
    "attnhook.capture.sites": ("AttentionSite",),
    "attnhook.capture.traceable": ("TraceableCapture",),
    "attnhook.capture.windows": ("WindowLayout",),
    "attnhook.capture.packing": ("PackedLayout",),
    "attnhook.capture.layout": ("TokenLayout",),
    "attnhook.capture.records": ("AttentionMaps", "BlockAttention"),
    "attnhook.capture.session": ("AttentionCapture",),
    "attnhook.imaging.geometry": ("ImageGeometry",),
    "attnhook.imaging.heatmaps": ("heatmap",),
    "attnhook.imaging.overlays": ("overlay",),
    "attnhook.zoo.loading": ("VisionModel", "load"),
    "attnhook.attribution.methods": ("METHODS",),
    "attnhook.attribution.raw_maps": ("raw_attention",),
    "attnhook.attribution.received": ("received_attention",),
    "attnhook.workflows.inspection": ("ModelDescription", "describe"),
    "attnhook.workflows.verification": ("VerificationReport", "verify"),
    "attnhook.workflows.results": ("AttentionResult", "attend"),
}
