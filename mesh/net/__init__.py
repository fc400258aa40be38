"""The mesh on real networks: TLS websockets, tensor links, mDNS. The rest of mesh needs none."""
