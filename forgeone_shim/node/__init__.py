"""ForgeOne on a node of a cluster: laid out, handed to systemd and the kubelet, upgraded, and taken away again."""
