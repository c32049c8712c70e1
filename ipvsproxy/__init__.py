"""The service proxy: from Services and EndpointSlices to IPVS, routes and nftables in this node's kernel."""
