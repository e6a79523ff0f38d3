"""What a pod's spec asks for, on each engine: order, volumes, limits, jobs."""

from __future__ import annotations

import time

from hack.lab.settings import patient
from tests.e2e.cluster.api import Cluster, condition, main, over, ready
from tests.e2e.cluster.conftest import Classes, Images
from tests.e2e.cluster.objects import executes, mounts, pod, probe, shell

_MIB = 1 << 20


def test_init_containers_run_one_after_the_other_before_the_others(
    cluster: Cluster, namespace: str, images: Images, classes: Classes, engine: str
) -> None:
    name, shared = f"init-{engine}", mounts("shared", "/shared")
    first = shell(images.busybox, "echo one > /shared/said", name="first", volumeMounts=shared)
    # It fails once: an init container is tried again until it has done its work.
    again = shell(
        images.busybox,
        "[ -e /shared/tried ] && echo two >> /shared/said || { touch /shared/tried; exit 1; }",
        name="again",
        volumeMounts=shared,
    )
    last = shell(images.busybox, "cat /shared/said; exec sleep 100000", volumeMounts=shared)
    body = pod(name, last, runtime_class=classes[engine], initContainers=[first, again])
    body["spec"]["volumes"] = [{"name": "shared", "emptyDir": {}}]
    made = cluster.run(namespace, body)
    assert cluster.lines(namespace, name, 2) == ["one", "two"]
    assert main(made, "again").restart_count == 1


def test_a_sidecar_serves_before_the_others_start_and_ends_after_them(
    cluster: Cluster, namespace: str, images: Images, classes: Classes, engine: str
) -> None:
    name = f"sidecar-{engine}"
    program = "trap 'echo told; exit 0' TERM; touch /tmp/up; while :; do sleep 0.2; done"
    sidecar = shell(
        images.busybox,
        program,
        name="sidecar",
        restartPolicy="Always",
        startupProbe=probe(executes("test", "-e", "/tmp/up"), failureThreshold=30),
    )
    work = shell(images.busybox, "echo worked")
    body = pod(name, work, runtime_class=classes[engine], initContainers=[sidecar], restartPolicy="Never")
    body["spec"]["terminationGracePeriodSeconds"] = 20
    done = cluster.run(namespace, body, lambda one: over(one) and main(one, "sidecar").state.terminated)
    assert done.status.phase == "Succeeded"
    assert main(done, "sidecar").state.terminated.started_at <= main(done).state.terminated.started_at
    assert main(done, "sidecar").state.terminated.finished_at >= main(done).state.terminated.finished_at
    assert cluster.logs(namespace, name, "sidecar") == "told\n"


def test_a_change_of_a_config_map_is_seen(
    cluster: Cluster, namespace: str, images: Images, classes: Classes, engine: str
) -> None:
    name = f"config-{engine}"
    cluster.core.create_namespaced_config_map(namespace, {"metadata": {"name": name}, "data": {"word": "before"}})
    program = 'until [ "$(cat /config/word)" = after ]; do sleep 0.5; done; echo seen'
    body = pod(
        name,
        shell(images.busybox, "cat /config/word; echo; " + program, volumeMounts=mounts("config", "/config")),
        runtime_class=classes[engine],
        restartPolicy="Never",
        volumes=[{"name": "config", "configMap": {"name": name}}],
    )
    cluster.run(namespace, body)
    assert cluster.lines(namespace, name, 1) == ["before"]
    cluster.core.patch_namespaced_config_map(name, namespace, {"data": {"word": "after"}})
    # A kubelet looks soon at the volumes of a pod that has changed, and else within its period of a minute or two.
    cluster.core.patch_namespaced_pod(name, namespace, {"metadata": {"annotations": {"look": "again"}}})
    assert cluster.pod(namespace, name, over, seconds=150).status.phase == "Succeeded"
    assert cluster.logs(namespace, name) == "before\nseen\n"


def test_a_service_account_s_token_and_a_secret_are_there(
    cluster: Cluster, namespace: str, images: Images, classes: Classes, engine: str
) -> None:
    name = f"secret-{engine}"
    cluster.core.create_namespaced_secret(namespace, {"metadata": {"name": name}, "stringData": {"word": "hidden"}})
    program = (
        "cd /var/run/secrets/kubernetes.io/serviceaccount; ls -1; test -s token; cat /secret/word; echo; echo $WORD"
    )
    body = pod(
        name,
        shell(
            images.busybox,
            program,
            volumeMounts=mounts("secret", "/secret", readOnly=True),
            env=[{"name": "WORD", "valueFrom": {"secretKeyRef": {"name": name, "key": "word"}}}],
        ),
        runtime_class=classes[engine],
        restartPolicy="Never",
        volumes=[{"name": "secret", "secret": {"secretName": name}}],
    )
    assert cluster.run(namespace, body, over).status.phase == "Succeeded"
    said = cluster.logs(namespace, name).split()
    assert said[-2:] == ["hidden", "hidden"] and {"ca.crt", "namespace", "token"} <= set(said)


def test_who_takes_more_memory_than_its_limit_is_killed_for_it(
    cluster: Cluster, namespace: str, images: Images, classes: Classes, engine: str
) -> None:
    name = f"memory-{engine}"
    limits = {"resources": {"limits": {"memory": "48Mi", "cpu": "500m"}}}
    greedy = shell(images.busybox, "exec tail /dev/zero", **limits)
    body = pod(name, greedy, runtime_class=classes[engine], restartPolicy="Never")
    ended = main(cluster.run(namespace, body, over, seconds=90)).state.terminated
    assert (ended.reason, ended.exit_code) == ("OOMKilled", 137)


def test_limits_are_those_of_the_container(cluster: Cluster, namespace: str, images: Images, classes: Classes) -> None:
    limits = {"resources": {"limits": {"memory": "64Mi", "cpu": "250m"}}}
    body = pod("limits", shell(images.busybox, "exec sleep 100000", **limits), runtime_class=classes["native"])
    cluster.run(namespace, body)
    files = "/sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes"
    assert str(64 * _MIB) in cluster.exec(namespace, "limits", "sh", "-c", f"cat {files} 2>/dev/null")


def test_a_job_is_complete_when_its_pods_are(
    cluster: Cluster, namespace: str, images: Images, classes: Classes, engine: str
) -> None:
    name = f"job-{engine}"
    once = pod(name, shell(images.busybox, "echo $JOB_COMPLETION_INDEX"), runtime_class=classes[engine])["spec"]
    template = {"spec": once | {"restartPolicy": "Never"}}
    body = {"completions": 3, "parallelism": 3, "completionMode": "Indexed", "template": template}
    cluster.batch.create_namespaced_job(namespace, {"metadata": {"name": name}, "spec": body})
    listing = cluster.batch.list_namespaced_job
    cluster.until(listing, namespace, name, lambda one: condition(one, "Complete") == "True", seconds=90)
    pods = cluster.core.list_namespaced_pod(namespace, label_selector=f"job-name={name}").items
    assert sorted(cluster.logs(namespace, one.metadata.name) for one in pods) == ["0\n", "1\n", "2\n"]


def test_a_cron_job_starts_its_job(cluster: Cluster, namespace: str, images: Images, classes: Classes) -> None:
    once = pod("cron", shell(images.busybox, "echo hello"), runtime_class=classes["native"])["spec"]
    template = {"spec": {"template": {"spec": once | {"restartPolicy": "Never"}}}}
    body = {"schedule": "* * * * *", "jobTemplate": template}
    cluster.batch.create_namespaced_cron_job(namespace, {"metadata": {"name": "cron"}, "spec": body})
    listing = cluster.batch.list_namespaced_cron_job
    # Its minute may just have begun.
    cluster.until(listing, namespace, "cron", lambda one: one.status.last_successful_time, seconds=100)


def test_a_pod_ends_within_its_grace_period(
    cluster: Cluster, namespace: str, images: Images, classes: Classes, engine: str
) -> None:
    name = f"deaf-{engine}"
    body = pod(name, shell(images.busybox, "trap '' TERM; while :; do sleep 1; done"), runtime_class=classes[engine])
    cluster.run(namespace, body)
    began = time.monotonic()
    cluster.remove_pod(namespace, name, grace=3)
    assert 2 < time.monotonic() - began < patient(20)


def test_an_image_that_does_not_exist_is_told_to_the_user(
    cluster: Cluster, namespace: str, images: Images, classes: Classes, engine: str
) -> None:
    name = f"absent-{engine}"
    body = pod(name, shell(images.busybox + "-absent", "true"), runtime_class=classes[engine])
    cluster.run(namespace, body, lambda one: main(one) and main(one).state.waiting.reason == "ErrImagePull")
    assert "not found" in cluster.event(namespace, name, "Failed")


def test_a_pod_s_name_address_and_fields_reach_it(
    cluster: Cluster, namespace: str, images: Images, classes: Classes, engine: str
) -> None:
    name = f"fields-{engine}"
    told = shell(
        images.busybox,
        "hostname; echo $POD_IP; cat /podinfo/labels; echo; exec sleep 100000",
        env=[{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        volumeMounts=mounts("podinfo", "/podinfo"),
    )
    items = [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]
    body = pod(name, told, runtime_class=classes[engine], labels={"colour": "red"})
    body["spec"]["volumes"] = [{"name": "podinfo", "downwardAPI": {"items": items}}]
    made = cluster.run(namespace, body, ready)
    assert cluster.lines(namespace, name, 3) == [name, made.status.pod_ip, 'colour="red"']
