"""Which addresses are one client."""

import ipaddress


def address_of(host: str) -> str:
    """How an address is counted: a network of IPv6 is one client, as it is given to one."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ip.ipv4_mapped or ipaddress.ip_network((ip, 64), strict=False).network_address)
    return host
