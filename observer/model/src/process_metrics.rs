//! Resource usage of the mesh's processes.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use crate::{
    catalogue::{self, Descriptor},
    identity::{Component, PROXY, ProcessId, Sidecar, Workload},
    reading::ProcessReading,
    recorded::{RecordedFamilies, RecordedValue},
};

/// Values of [`crate::labels::PROCESS_NAMES`].
type Identity = [String; 4];

/// Records the processes whose identity is known. Of several with the same labels, e.g. while one sidecar of a pod
/// takes over from another, the youngest is exposed.
pub(crate) fn record(
    readings: &[ProcessReading],
    running: &[Arc<Sidecar>],
    components: &[Arc<Component>],
    families: &mut RecordedFamilies,
) {
    let sidecars = running.iter().map(|sidecar| (sidecar.process, of_sidecar(sidecar)));
    let components = components.iter().map(|component| (component.process, of_component(component)));
    let identities: BTreeMap<ProcessId, Identity> = sidecars.chain(components).collect();
    let mut exposed: BTreeMap<&Identity, &ProcessReading> = BTreeMap::new();
    let mut hidden = 0;
    for reading in readings {
        let Some(identity) = identities.get(&reading.process) else { continue };
        let youngest = exposed.entry(identity).or_insert(reading);
        hidden += u64::from(youngest.process != reading.process);
        let started = |reading: &ProcessReading| (reading.process.start_time, reading.process.pid);
        if started(youngest) < started(reading) {
            *youngest = reading;
        }
    }
    for (family, value_of) in FAMILIES {
        let family = families.add(family);
        let otherwise = family.created;
        for (identity, reading) in &exposed {
            if let Some(value) = value_of(reading) {
                family.created = reading.started.unwrap_or(otherwise);
                family.point(&identity.each_ref().map(String::as_str), value);
            }
        }
    }
    let processes = families.add(&catalogue::PROCESSES);
    processes.point(&["exposed"], exposed.len() as u64);
    processes.point(&["hidden"], hidden);
}

/// Returns the identity of a sidecar, which is unique by its address.
fn of_sidecar(sidecar: &Sidecar) -> Identity {
    identity(PROXY, sidecar.addresses.first(), &sidecar.workload, sidecar.process)
}

/// Returns the identity of a component, which is unique by its `/metrics` endpoint.
fn of_component(component: &Component) -> Identity {
    let instance = component.endpoint.as_ref().ok().map(|endpoint| endpoint.instance);
    identity(&component.app, instance, &component.workload, component.process)
}

/// Returns the labels of a process; without pod and instance its pid is the instance.
fn identity(app: &str, instance: Option<impl ToString>, workload: &Workload, process: ProcessId) -> Identity {
    let instance = match (instance, &workload.pod) {
        (Some(instance), _) => instance.to_string(),
        (None, Some(_)) => String::new(),
        (None, None) => format!("process-{}", process.pid),
    };
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    [app.to_owned(), instance, text(&workload.pod), text(&workload.namespace)]
}

type Getter = fn(&ProcessReading) -> Option<RecordedValue>;

static FAMILIES: [(&Descriptor, Getter); 12] = [
    (&catalogue::PROCESS_CPU_SECONDS_TOTAL, |reading| Some(reading.cpu.into())),
    (&catalogue::PROCESS_RESIDENT_MEMORY_BYTES, |reading| Some(reading.resident_bytes.into())),
    (&catalogue::PROCESS_VIRTUAL_MEMORY_BYTES, |reading| Some(reading.virtual_bytes.into())),
    (&catalogue::PROCESS_OPEN_FDS, |reading| reading.open_files.map(RecordedValue::from)),
    (&catalogue::PROCESS_MAX_FDS, |reading| reading.max_open_files.map(RecordedValue::from)),
    (&catalogue::PROCESS_START_TIME_SECONDS, |reading| {
        let since = reading.started?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(since.into())
    }),
    (&catalogue::PROCESS_THREADS, |reading| Some(reading.threads.into())),
    (&catalogue::CGROUP_MEMORY, |reading| reading.cgroup.memory_bytes.map(RecordedValue::from)),
    (&catalogue::CGROUP_MEMORY_LIMIT, |reading| reading.cgroup.max_memory_bytes.map(RecordedValue::from)),
    (&catalogue::CGROUP_CPU_PERIODS, |reading| reading.cgroup.periods.map(RecordedValue::from)),
    (&catalogue::CGROUP_CPU_THROTTLED_PERIODS, |reading| reading.cgroup.throttled_periods.map(RecordedValue::from)),
    (&catalogue::CGROUP_CPU_THROTTLED_SECONDS, |reading| reading.cgroup.throttled.map(RecordedValue::from)),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Family, Inputs, Model, SelfMetrics, Snapshot, Value,
        fixture::{at, istiod, peers, process, reading, sidecar, workload},
        identity::{Role, Workload},
    };
    use std::time::Duration;

    fn snapshot(readings: Vec<ProcessReading>, running: &[Arc<Sidecar>]) -> Arc<Snapshot> {
        let mut reading = reading(1, Vec::new());
        reading.processes = readings;
        let (peers, own) = (peers(), SelfMetrics::default());
        let inputs = Inputs {
            reading: &reading,
            running,
            ended: &[],
            components: &[istiod(9)],
            peers: &peers,
            own: &own,
            closes_interval: false,
        };
        Model::new(at(0), Duration::from_mins(15)).update(inputs)
    }

    fn points<'a>(snapshot: &'a Snapshot, family: &Descriptor) -> Option<Family<'a>> {
        snapshot.families().find(|own| own.name() == family.prometheus_name)
    }

    fn labels(family: Family<'_>) -> Vec<Vec<String>> {
        let values = family.points().map(|point| {
            let mut values = Vec::new();
            point.labels.each(|_, value| values.push(value.to_owned()));
            values
        });
        values.collect()
    }

    #[test]
    fn figures_stand_under_the_pod() {
        let running = [sidecar(1, Role::Sidecar, "10.0.0.1", workload("reviews", &[]))];
        let snapshot = snapshot(vec![process(1, 250), process(8, 250), process(9, 250)], &running);
        let cpu = points(&snapshot, &catalogue::PROCESS_CPU_SECONDS_TOTAL).unwrap();
        let expected = [
            ["istio-proxy", "10.0.0.1", "reviews-0", "default"],
            ["istiod", "10.0.0.9:15014", "istiod-0", "istio-system"],
        ];
        assert_eq!(labels(cpu), expected, "nobody knows process 8");
        let point = cpu.points().next().unwrap();
        assert!(matches!(point.value, Value::Real(12.34)), "{point:?}");
        assert_eq!(point.created, process(1, 250).started);
        let start = points(&snapshot, &catalogue::PROCESS_START_TIME_SECONDS).unwrap().points().next().unwrap();
        assert!(matches!(start.value, Value::Real(1_699_999_995.75)), "{start:?}");
    }

    #[test]
    fn what_is_absent_has_no_point() {
        let running = [sidecar(1, Role::Gateway, "10.0.0.1", workload("edge", &[]))];
        let snapshot = snapshot(vec![process(1, 0)], &running);
        assert!(points(&snapshot, &catalogue::PROCESS_OPEN_FDS).is_none());
        assert!(points(&snapshot, &catalogue::CGROUP_MEMORY_LIMIT).is_none());
        assert!(points(&snapshot, &catalogue::PROCESS_THREADS).is_some());
    }

    #[test]
    fn of_equal_labels_the_youngest_is_exposed_and_the_others_are_counted() {
        let pod = workload("reviews", &[]);
        let running = [2, 3, 1].map(|pid| sidecar(pid, Role::Sidecar, "10.0.0.1", pod.clone()));
        let mut readings = vec![process(2, 1), process(3, 1), process(1, 1)];
        readings[1].threads = 33;
        let snapshot = snapshot(readings, &running);
        let threads = points(&snapshot, &catalogue::PROCESS_THREADS).unwrap();
        assert!(matches!(threads.points().map(|point| point.value).collect::<Vec<_>>()[..], [Value::Integer(33)]));
        let outcomes = points(&snapshot, &catalogue::PROCESSES).unwrap();
        let outcomes: Vec<_> = outcomes.points().map(|point| point.value).collect();
        assert!(matches!(outcomes[..], [Value::Integer(1), Value::Integer(2)]), "{outcomes:?}");
    }

    #[test]
    fn those_without_identity_are_told_apart_by_their_number() {
        let running = [1, 2].map(|pid| {
            let mut sidecar = sidecar(pid, Role::Sidecar, "10.0.0.1", Arc::new(Workload::default()));
            Arc::get_mut(&mut sidecar).unwrap().addresses.clear();
            sidecar
        });
        let snapshot = snapshot(vec![process(1, 1), process(2, 1)], &running);
        let threads = points(&snapshot, &catalogue::PROCESS_THREADS).unwrap();
        assert_eq!(labels(threads), [["istio-proxy", "process-1", "", ""], ["istio-proxy", "process-2", "", ""]]);
    }
}
