# What NCCL and Gloo must be told of the network between the nodes: looked up, not assumed. Sourced.
# A variable that is set already keeps its value; TRILEMMA_FABRIC=cxi|roce|infiniband|plain|none decides by hand.
# shellcheck shell=bash

fabric() {
  local sys=${TRILEMMA_SYSFS:-/sys} kind=${TRILEMMA_FABRIC:-auto} interface
  [[ $kind == auto ]] && kind=$(_fabric_kind "$sys")
  interface=$(_first "$sys"/class/net/hsn*) # the high-speed network of HPE Cray machines
  case $kind in
    cxi) # Slingshot-11: NCCL reaches it through libfabric, by the plugin aws-ofi-nccl that a site's module brings
      export NCCL_NET="${NCCL_NET:-AWS Libfabric}"
      export NCCL_NET_GDR_LEVEL="${NCCL_NET_GDR_LEVEL:-PHB}"
      export NCCL_CROSS_NIC="${NCCL_CROSS_NIC:-1}"
      export FI_CXI_DISABLE_HOST_REGISTER="${FI_CXI_DISABLE_HOST_REGISTER:-1}"
      export FI_MR_CACHE_MONITOR="${FI_MR_CACHE_MONITOR:-userfaultfd}"
      export FI_CXI_DEFAULT_CQ_SIZE="${FI_CXI_DEFAULT_CQ_SIZE:-131072}"
      export FI_CXI_RX_MATCH_MODE="${FI_CXI_RX_MATCH_MODE:-hybrid}"
      ;;
    roce | infiniband | plain) ;; # NCCL's own transports find their way
    none) return 0 ;;
    *) die "TRILEMMA_FABRIC=$kind: choose one of auto, cxi, roce, infiniband, plain, none" ;;
  esac
  if [[ -n $interface ]]; then
    export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-hsn}"
    export GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-$interface}"
  elif [[ $(getent hosts "$MASTER_ADDR" | head -n 1) =~ ^(127\.|::1) ]]; then # all nodes are this machine
    export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-lo}"
    export GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-lo}"
  fi
  echo "fabric: $kind${interface:+ on ${interface%%[0-9]*}}${GLOO_SOCKET_IFNAME:+, GLOO_SOCKET_IFNAME=$GLOO_SOCKET_IFNAME}"
}

_fabric_kind() {
  local device
  [[ -n $(_first "$1"/class/cxi/*) ]] && echo cxi && return
  device=$(_first "$1"/class/infiniband/*)
  [[ -z $device ]] && echo plain && return
  case $(cat "$1/class/infiniband/$device"/ports/*/link_layer 2>/dev/null) in
    *InfiniBand*) echo infiniband ;;
    *) echo roce ;; # ConnectX behind Ethernet: Slingshot-10 among them
  esac
}

# The name of the first file that a pattern matched, or nothing.
_first() {
  [[ -e $1 ]] && basename "$1"
}
