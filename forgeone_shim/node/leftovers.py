"""What forgeoned keeps on a host for the pods to come, and nobody needs once there is no forgeoned."""

from __future__ import annotations

from forgeone_shim.config.model import NetworkConfig
from forgeone_shim.errors import InternalError
from forgeone_shim.kernel.netlink import NETLINK_NETFILTER, Pool
from forgeone_shim.network import bridge
from forgeone_shim.network.nftables import Table


def remove(network: NetworkConfig) -> None:
    """The built-in network's bridge and table, of this process's network namespace; missing ones are no error.

    :raises InternalError: the kernel refuses.
    """
    pool = Pool(NETLINK_NETFILTER)
    try:
        bridge.unplug([network.bridge])
        Table(network.table, pool).delete()
    except OSError as error:
        raise InternalError(f"remove the network {network.bridge}: {error}") from None
    finally:
        pool.close()
