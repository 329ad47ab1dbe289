# A node: containerd and kubelet as process 1, and what it starts, of namespaces of their own. When it ends, so does
# everything in them, and the mounts go with them. From the environment: NAME, ADDRESS, FOLDER (all that is kept on
# disk, and has the pods' network in `cni` and programs in `bin`), CGROUP, ALL_NODES_CGROUP, KUBECONFIG, KUBELET, CONTAINERD
# (a folder with Debian's package unpacked), IMAGES, DNS (address of the cluster's DNS).
set -eu
mount --make-rprivate /
# What would be found, or left, at fixed places of the machine: each node has its own.
for place in /run /var/lib /var/log; do mount -t tmpfs tmpfs $place; done
mkdir -p "$FOLDER/cache" /run/lota
mount --bind "$FOLDER/cache" /var/cache
mount -t bpf bpf /sys/fs/bpf
# kubelet would set these for the whole machine. It finds what it wants, and writes nothing.
while read -r name value; do
    echo "$value" > "/run/$(basename "$name")"
    mount --bind "/run/$(basename "$name")" "/proc/sys/$name"
done <<END
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
END
for root in /sys/fs/cgroup/*/cgroup.sane_behavior; do
    mkdir -p "${root%/*}/$CGROUP"
done
for file in cpuset.cpus cpuset.mems; do
    if [ -e "/sys/fs/cgroup/cpuset/$file" ]; then
        cat "/sys/fs/cgroup/cpuset/$file" > "/sys/fs/cgroup/cpuset/$CGROUP/$file"
    fi
done
# The node's cgroup of version 2, which runc makes pods' cgroups in, also has a name that is the same on each node: the chart
# has one configuration for all of them.
for root in /sys/fs/cgroup /sys/fs/cgroup/unified; do
    if [ -e "$root/cgroup.controllers" ]; then
        mkdir -p "$root/$CGROUP" "$root/$ALL_NODES_CGROUP"
        mount --bind "$root/$CGROUP" "$root/$ALL_NODES_CGROUP"
    fi
done
cat > "$FOLDER/containerd.toml" <<END
version = 2
root = "$FOLDER/containerd"
state = "/run/containerd"
oom_score = 0
disabled_plugins = [
    "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing",
]
[grpc]
address = "/run/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "lab/pause:1"
restrict_oom_score_adj = true
disable_tcp_service = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "$FOLDER/cni"
conf_dir = "$FOLDER/cni/networks"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "$CONTAINERD/usr/sbin/runc"
SystemdCgroup = false
END
cat > "$FOLDER/kubelet.yaml" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $ADDRESS
healthzBindAddress: 127.0.0.1
readOnlyPort: 0
authentication: { anonymous: { enabled: true }, webhook: { enabled: false } }
authorization: { mode: AlwaysAllow }
cgroupDriver: cgroupfs
cgroupRoot: /$CGROUP
failSwapOn: false
evictionHard: { memory.available: 1Mi, nodefs.available: "1%", nodefs.inodesFree: "1%", imagefs.available: "1%" }
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
oomScoreAdj: 0
makeIPTablesUtilChains: false
resolvConf: ""
clusterDNS: [$DNS]
clusterDomain: cluster.local
nodeStatusUpdateFrequency: 2s
syncFrequency: 2s
staticPodPath: $FOLDER/static
fileCheckFrequency: 1s
volumePluginDir: /var/lib/kubelet/plugins
END
PATH="$FOLDER/bin:$CONTAINERD/usr/bin:$CONTAINERD/usr/sbin:$PATH"
containerd --config "$FOLDER/containerd.toml" > "$FOLDER/containerd.log" 2>&1 &
ctr="ctr --address /run/containerd.sock --namespace k8s.io"
tries=0
until $ctr version > /dev/null 2>&1; do
    tries=$((tries + 1))
    [ $tries -lt 300 ]
    sleep 0.1
done
for image in $IMAGES; do
    $ctr images import "$image"
done
# It keeps a deleted pod in the API server until its containers are removed, at once or by a round each minute.
exec "$KUBELET" --kubeconfig="$KUBECONFIG" --config="$FOLDER/kubelet.yaml" --hostname-override="$NAME" \
    --node-ip="$ADDRESS" --container-runtime=remote --container-runtime-endpoint=unix:///run/containerd.sock \
    --runtime-cgroups="/$CGROUP" --maximum-dead-containers-per-container=0
