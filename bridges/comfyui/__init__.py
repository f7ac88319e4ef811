"""guidestack as a node pack of ComfyUI: link this folder into `custom_nodes` (docs/comfyui.md).

ComfyUI loads the folder under a name of its own, so that what it is made of is imported by its full name. A core that
knows both registrations takes the mappings; `comfy_entrypoint` is for one that knows no mappings.
"""

from guidestack.bridges.comfyui.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, comfy_entrypoint

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "comfy_entrypoint"]
