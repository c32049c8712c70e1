"""The effects on one Linux kernel: netlink, nft, sysctls. Only `__main__` puts them together with the reconciler."""
