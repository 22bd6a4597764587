"""Videos and photographs by the thousand, on a Ray cluster: `pip install 'jclnf[ray]'`."""

import lazy_loader

# What a process of the cluster does not need, it does not import.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
