"""The records of the pipeline families, one file a family; importing this package enters them."""

from . import (
    audioldm2 as audioldm2,
)
from . import (
    aura_flow as aura_flow,
)
from . import (
    chroma as chroma,
)
from . import (
    cogvideox as cogvideox,
)
from . import (
    cogview4 as cogview4,
)
from . import (
    ddpm as ddpm,
)
from . import (
    dit as dit,
)
from . import (
    flux as flux,
)
from . import (
    flux2 as flux2,
)
from . import (
    hidream as hidream,
)
from . import (
    hunyuan_dit as hunyuan_dit,
)
from . import (
    hunyuan_video as hunyuan_video,
)
from . import (
    kandinsky3 as kandinsky3,
)
from . import (
    kolors as kolors,
)
from . import (
    ltx as ltx,
)
from . import (
    lumina2 as lumina2,
)
from . import (
    mochi as mochi,
)
from . import (
    pixart as pixart,
)
from . import (
    qwen_image as qwen_image,
)
from . import (
    sana as sana,
)
from . import (
    stable_audio as stable_audio,
)
from . import (
    stable_diffusion as stable_diffusion,
)
from . import (
    stable_diffusion_3 as stable_diffusion_3,
)
from . import (
    stable_diffusion_xl as stable_diffusion_xl,
)
from . import (
    wan as wan,
)
from . import (
    z_image as z_image,
)
