"""Service accounts to secrets: each account of a managed namespace has key and certificate in `istio.<account>`."""
