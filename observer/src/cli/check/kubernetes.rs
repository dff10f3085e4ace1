//! What the Kubernetes API gives.

use super::outputs::Listening;
use crate::{
    cli::own_pages::OwnPages,
    config::{Config, values::KubernetesMode},
    discovery::kubernetes::{Access, ApiError, Kubernetes, Permission},
    model::catalogue,
};

/// The API, as far as these options reach it.
#[derive(Clone, Debug)]
pub(super) enum KubernetesFacts {
    /// Turned off by an option.
    Off,
    /// No credentials.
    NoAccess,
    /// Credentials that cannot be used, and why.
    Unusable(String),
    /// It was asked.
    Asked {
        /// Where the credentials are.
        source: String,
        /// Permissions, and whether each is granted.
        permissions: Vec<(Permission, Result<bool, ApiError>)>,
        /// Resources, and the seconds since a running observer last had a watch of them open; or why it cannot be read.
        staleness: Result<Vec<(String, f64)>, String>,
    },
}

/// Asks the API, and the observer that runs here.
pub(super) fn inspect(config: &Config, pages: &Result<OwnPages, String>, listening: &Listening) -> KubernetesFacts {
    if config.kubernetes == KubernetesMode::Off {
        return KubernetesFacts::Off;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return KubernetesFacts::Unusable(error.to_string()),
    };
    let facts = runtime.block_on(async {
        match Access::open(config.kubeconfig.as_deref()).await {
            Ok(None) => KubernetesFacts::NoAccess,
            Err(error) => KubernetesFacts::Unusable(error.to_string()),
            Ok(Some(access)) => {
                let source = access.source();
                let permissions = Kubernetes::permissions(access).await;
                let staleness = match (listening, pages) {
                    (Listening::Observer, Ok(pages)) => staleness(pages).await.map_err(|error| error.to_string()),
                    _ => Ok(Vec::new()),
                };
                KubernetesFacts::Asked { source, permissions, staleness }
            }
        }
    });
    runtime.shutdown_background();
    facts
}

/// Returns the staleness that a running observer exposes.
async fn staleness(pages: &OwnPages) -> anyhow::Result<Vec<(String, f64)>> {
    let family = catalogue::KUBERNETES_STALENESS.prometheus_name;
    let page = pages.get(&format!("/metrics?family={family}")).await?.text().await?;
    Ok(page.lines().filter_map(|line| sample(line, family)).collect())
}

/// Returns resource and value of a sample of a family.
fn sample(line: &str, family: &str) -> Option<(String, f64)> {
    let (labels, value) = line.strip_prefix(family)?.strip_prefix("{resource=\"")?.split_once("\"}")?;
    Some((labels.to_owned(), value.trim().parse().ok()?))
}

impl super::Report {
    pub(super) fn kubernetes(&mut self, facts: &KubernetesFacts) {
        self.title("Kubernetes API");
        let (source, permissions, staleness) = match facts {
            KubernetesFacts::Off => {
                return self.item("note", "turned off: names come from this node and the configuration");
            }
            KubernetesFacts::NoAccess => {
                self.item("note", "no credentials: names come from this node and the configuration");
                self.detail("In a pod, set automountServiceAccountToken; elsewhere name a file with --kubeconfig.");
                return;
            }
            KubernetesFacts::Unusable(problem) => return self.item("FAIL", problem),
            KubernetesFacts::Asked { source, permissions, staleness } => (source, permissions, staleness),
        };
        self.item("ok", &format!("credentials: {source}"));
        for (Permission { group, resource, verb }, granted) in permissions {
            let dot = if group.is_empty() { "" } else { "." };
            let what = format!("{verb} {}{dot}{group}", resource.name());
            match granted {
                Ok(true) => self.item("ok", &what),
                Ok(false) => self.item("note", &format!("{what}: not granted; add it to the observer's ClusterRole")),
                Err(error) => {
                    self.item("note", &format!("{what}: not known: {error}"));
                    // The others would take as long and fail alike.
                    break;
                }
            }
        }
        match staleness {
            Ok(staleness) => staleness.iter().for_each(|(resource, seconds)| {
                let state = if *seconds > 0.0 { "note" } else { "ok" };
                self.item(state, &format!("the running observer's {resource} are {seconds:.0} s old"));
            }),
            Err(problem) => self.item("note", &format!("how old the running observer's are is not known: {problem}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_from_a_page() {
        let line = r#"mesh_observer_kubernetes_staleness_seconds{resource="services"} 12.5"#;
        assert_eq!(sample(line, "mesh_observer_kubernetes_staleness_seconds"), Some(("services".to_owned(), 12.5)));
        assert_eq!(sample("# TYPE x gauge", "x"), None);
    }
}
