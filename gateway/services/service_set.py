"""The services of one process, with their supervisors, in the order of their dependencies."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gateway.core import dependency_graph, service_records
from gateway.services.supervisor import Service, Supervisor


class ServiceError(ValueError):
    """A service that cannot be registered; the message names the service."""


class ServiceSet(dict[str, Supervisor]):
    """Supervisors by service name. `host`: of this process; `on_changed` is called with each change of a record."""

    def __init__(self, host: str, on_changed: Callable[[str, bool], None]) -> None:
        super().__init__()
        self.order: list[str] = []  # each service after those that it depends on
        self._host = host
        self._on_changed = on_changed

    def add(self, services: Iterable[Service]) -> list[str]:
        """Add several services in any order: either all of them or none. Returns their names.

        Raises:
            ServiceError: A service is invalid, depends on an unknown service, or the dependencies form a cycle.
        """
        added: dict[str, Service] = {}
        for service in services:
            if service.name in self or service.name in added:
                raise ServiceError(f"{service.name} is registered already")
            added[_checked(service).name] = service
        if len(self) + len(added) > service_records.MAX_SERVICES:
            raise ServiceError(f"A program may register at most {service_records.MAX_SERVICES} services")
        graph = {name: supervisor.service.depends_on for name, supervisor in self.items()}
        graph |= {name: service.depends_on for name, service in added.items()}
        try:
            self.order = dependency_graph.order(graph)
        except dependency_graph.DependencyError as error:
            raise ServiceError(str(error)) from None
        self.update({name: Supervisor(service, self._host, self._on_changed) for name, service in added.items()})
        return list(added)


def _checked(service: Service) -> Service:
    if not service_records.is_service(service.name):
        raise ServiceError(f"{service.name!r} cannot be a service's name: use 1 to 64 of A-Z a-z 0-9 _ . : -")
    if service.tick is not None and service.tick_seconds <= 0:
        raise ServiceError(f"{service.name}: tick_seconds must be above 0")
    if service.check_seconds <= 0:
        raise ServiceError(f"{service.name}: check_seconds must be above 0")
    return service
