"""The cluster DNS server: answers for the cluster's zone from the API's objects, and forwards the rest."""
