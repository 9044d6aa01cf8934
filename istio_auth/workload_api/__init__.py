"""The clients of the SPIFFE Workload API: where it listens, what it answers, when to ask again."""

from istio_auth.workload_api.blocking import BlockingWorkloadAPIClient
from istio_auth.workload_api.client import WorkloadAPIClient

__all__ = ["BlockingWorkloadAPIClient", "WorkloadAPIClient"]
