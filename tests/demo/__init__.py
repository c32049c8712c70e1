"""`make demo`: a small cluster's service network, live, on one machine. The end-to-end tests run on the same one."""
