//! Every metric there is: its name, kind, labels and meaning. `docs/metrics.md`
//! has the same table, and a test compares.

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Goes up only.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How values are spread.
    Histogram,
}

impl Kind {
    /// The format's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Its labels, in the order they are written.
    pub labels: &'static [&'static str],
    /// What it means, with its unit.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($name:literal $kind:ident [$($label:literal),*] $help:literal;)*) => {
        /// Every metric of `/metrics`.
        pub const METRICS: &[Metric] = &[$(Metric {
            name: $name,
            kind: Kind::$kind,
            labels: &[$($label),*],
            help: $help,
        },)*];
    };
}

metrics! {
    "vman_build_info" Gauge ["version"] "Always 1; the label tells VMAN's version.";
    "vman_ready" Gauge [] "1 once every VM was found again after the daemon's start.";
    "vman_recovery_seconds" Gauge [] "How long recovery took at the daemon's start, in seconds.";
    "vman_host_memory_bytes" Gauge [] "Memory the host has for VMs, in bytes.";
    "vman_host_memory_allowed_bytes" Gauge [] "Memory that may be promised to VMs, in bytes; where there is a limit.";
    "vman_host_memory_promised_bytes" Gauge [] "Memory promised to VMs that run or are about to, in bytes.";
    "vman_host_cpus" Gauge [] "Processors the host has for VMs.";
    "vman_host_cpus_allowed" Gauge [] "Virtual CPUs that may be promised to VMs; where there is a limit.";
    "vman_host_cpus_promised" Gauge [] "Virtual CPUs promised to VMs that run or are about to.";
    "vman_vms" Gauge ["state"] "VMs by state.";
    "vman_vm_state" Gauge ["vm", "state"] "Always 1; the label tells the VM's present state.";
    "vman_vm_unresponsive" Gauge ["vm"] "1 while the VM's QEMU lives and does not answer over QMP.";
    "vman_vm_incarnation" Gauge ["vm"] "How many lives the VM's QEMU has had.";
    "vman_vm_start_time_seconds" Gauge ["vm"] "When the guest was started, in seconds since the epoch; while it runs.";
    "vman_vm_vcpus" Gauge ["vm"] "Virtual CPUs of the VM.";
    "vman_vm_memory_configured_bytes" Gauge ["vm"] "Memory the guest was given, in bytes.";
    "vman_vm_memory_rss_bytes" Gauge ["vm"] "Memory of the host that the VM's QEMU holds, in bytes.";
    "vman_vm_cpu_seconds_total" Counter ["vm"] "Time the VM's QEMU has spent on the host's CPUs, in seconds.";
    "vman_vm_threads" Gauge ["vm"] "Threads of the VM's QEMU.";
    "vman_vm_storage_read_bytes_total" Counter ["vm"] "Bytes the VM's QEMU has caused the host's storage to read.";
    "vman_vm_storage_written_bytes_total" Counter ["vm"] "Bytes the VM's QEMU has caused the host's storage to write.";
    "vman_vm_memory_balloon_bytes" Gauge ["vm"] "Memory the guest holds by its balloon, in bytes.";
    "vman_vm_disk_read_bytes_total" Counter ["vm", "disk"] "Bytes the guest has read from the disk.";
    "vman_vm_disk_written_bytes_total" Counter ["vm", "disk"] "Bytes the guest has written to the disk.";
    "vman_vm_disk_read_requests_total" Counter ["vm", "disk"] "The guest's requests to read from the disk.";
    "vman_vm_disk_write_requests_total" Counter ["vm", "disk"] "The guest's requests to write to the disk.";
    "vman_vm_disk_flush_requests_total" Counter ["vm", "disk"] "The guest's requests to flush the disk.";
    "vman_vm_network_receive_bytes_total" Counter ["vm", "nic"] "Bytes that came to the guest through the network card; on a bridge.";
    "vman_vm_network_receive_packets_total" Counter ["vm", "nic"] "Packets that came to the guest through the network card; on a bridge.";
    "vman_vm_network_transmit_bytes_total" Counter ["vm", "nic"] "Bytes the guest has sent through the network card; on a bridge.";
    "vman_vm_network_transmit_packets_total" Counter ["vm", "nic"] "Packets the guest has sent through the network card; on a bridge.";
    "vman_vm_disk_errors_total" Counter ["vm", "disk", "reason"] "Failures of a VM's disks on the host, by disk and reason (no_space, io_error); each stops the guest.";
    "vman_vm_restarts_total" Counter ["reason"] "Restarts by policy, by the reason for which the life before ended.";
    "vman_records" Gauge ["kind"] "Records by kind.";
    "vman_quarantined_records" Gauge [] "Records that could not be read and were set aside.";
    "vman_events_total" Counter ["kind"] "Recorded events by kind.";
    "vman_operations_running" Gauge ["kind"] "Operations under way, by kind.";
    "vman_operation_duration_seconds" Histogram ["kind", "status"] "How long operations took from request to end, in seconds.";
    "vman_actor_restarts_total" Counter ["actor"] "Actors that died and were started again.";
    "vman_actor_mailbox_depth" Gauge ["actor"] "Messages that wait in the mailboxes of actors of this kind.";
    "vman_actor_handler_duration_seconds" Histogram ["actor"] "How long actors of this kind took over a message, in seconds.";
    "vman_store_commit_duration_seconds" Histogram [] "How long durable commits took, in seconds.";
    "vman_store_commit_changes" Histogram [] "Changes made durable by one commit.";
    "vman_store_commit_failures_total" Counter [] "Commits that failed.";
    "vman_store_size_bytes" Gauge [] "Size of the store's file, in bytes.";
    "vman_store_revision" Gauge [] "The last revision; it goes up by one with each change.";
    "vman_qmp_command_duration_seconds" Histogram ["command", "outcome"] "How long QMP commands took, in seconds, by how they ended.";
    "vman_http_requests_total" Counter ["method", "route", "status"] "Requests answered.";
    "vman_http_request_duration_seconds" Histogram ["method", "route"] "From a request's headers to its answer's, in seconds.";
    "vman_http_requests_in_flight" Gauge [] "Requests under way.";
    "vman_observer_checks_total" Counter [] "Checks of the observer since its start.";
    "vman_observer_check_duration_seconds" Gauge [] "How long the last check took, in seconds.";
    "vman_observer_last_check_time_seconds" Gauge [] "When the last check ended, in seconds since the epoch.";
    "vman_observer_findings" Gauge ["issue_type"] "What the last check found, by class.";
    "vman_log_dropped_records_total" Counter ["destination"] "Log records dropped because a destination was too slow.";
    "process_cpu_seconds_total" Counter [] "Time the daemon has spent on the CPUs, in seconds.";
    "process_resident_memory_bytes" Gauge [] "Memory the daemon holds, in bytes.";
    "process_threads" Gauge [] "Threads of the daemon.";
}
