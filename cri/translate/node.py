"""The node: conditions, handlers and what they can do, the pod CIDR."""

from __future__ import annotations

import ipaddress

from cri.api import runtime_pb2 as pb
from forgeone_shim.errors import InvalidInput
from forgeone_shim.runtime.views import Condition, NodeStatus


def status(node: NodeStatus) -> pb.StatusResponse:
    """The answer to Status, without its verbose part."""
    default = next((handler.features for handler in node.handlers if not handler.name), None)
    return pb.StatusResponse(
        status=pb.RuntimeStatus(
            conditions=[
                _condition("RuntimeReady", node.runtime),
                _condition("NetworkReady", node.network),
                _condition("ConfigurationLoaded", node.configuration),
                _condition("AuditLogSound", node.audit),
                *([_condition("ClusterPoliciesSynced", node.cluster)] if node.cluster is not None else []),
            ]
        ),
        runtime_handlers=[
            pb.RuntimeHandler(
                name=handler.name,
                features=pb.RuntimeHandlerFeatures(
                    recursive_read_only_mounts=handler.features.recursive_read_only_mounts,
                    user_namespaces=handler.features.user_namespaces,
                ),
            )
            for handler in node.handlers
        ],
        features=pb.RuntimeFeatures(
            supplemental_groups_policy=default is not None and default.supplemental_groups_policy,
            mount_options=default is not None and default.mount_options,
            user_namespaces_host_network=default is not None and default.user_namespaces_host_network,
        ),
    )


def _condition(type_: str, condition: Condition) -> pb.RuntimeCondition:
    return pb.RuntimeCondition(type=type_, status=condition.ready, reason=condition.reason, message=condition.message)


def pod_cidr(config: pb.RuntimeConfig) -> str:
    """The node's range or ranges in their normal form; empty where the kubelet knows none yet."""
    path = "runtime_config.network_config.pod_cidr"
    try:
        ranges = [ipaddress.ip_network(part.strip()) for part in config.network_config.pod_cidr.split(",") if part]
    except ValueError as error:
        raise InvalidInput(path, str(error)) from None
    if len({one.version for one in ranges}) != len(ranges):
        raise InvalidInput(path, "holds two ranges of one IP version")
    return ",".join(str(one) for one in ranges)
