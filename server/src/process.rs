//! Metrics of the process itself, under the names that Prometheus' own libraries give them. Linux only: elsewhere there are
//! none.

use metrics::Unit::{Bytes, Count, Seconds};

/// Clock ticks of the kernel a second, as it shows them to programs: the same on all common machines.
const TICKS_PER_SECOND: f64 = 100.0;

pub fn describe() {
    metrics::describe_gauge!("process_resident_memory_bytes", Bytes, "Memory of the process");
    metrics::describe_gauge!("process_cpu_seconds_total", Seconds, "Processor time of the process");
    metrics::describe_gauge!("process_open_fds", Count, "Open files and connections");
    metrics::describe_gauge!("perdure_build_info", "The version that runs, as a label");
    metrics::gauge!("perdure_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

/// Brings them up to date.
pub fn measure() {
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return };
    if let Some((cpu_seconds, resident_bytes)) = parse(&stat, 4096) {
        // A counter of whole seconds would be too coarse: the exporter shows a gauge's fractions.
        metrics::gauge!("process_cpu_seconds_total").set(cpu_seconds);
        metrics::gauge!("process_resident_memory_bytes").set(resident_bytes as f64);
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        metrics::gauge!("process_open_fds").set(files.count() as f64);
    }
}

/// Processor seconds and resident bytes of a line of `/proc/PID/stat`.
fn parse(stat: &str, page_bytes: u64) -> Option<(f64, u64)> {
    // The program's name, in parentheses, may hold spaces.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let ticks = number(11)? + number(12)?;
    Some((ticks as f64 / TICKS_PER_SECOND, number(21)? * page_bytes))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_line_of_the_kernel_is_read() {
        let stat =
            "7 (a (b) c) S 1 7 7 0 -1 4194560 900 0 0 0 150 50 0 0 20 0 4 0 100 1000000 25 18446744073709551615 0";
        assert_eq!(super::parse(stat, 4096), Some((2.0, 25 * 4096)));
        assert_eq!(super::parse("garbage", 4096), None);
    }
}
