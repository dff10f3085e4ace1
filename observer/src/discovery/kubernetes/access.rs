//! Access to the API: the pod's own credentials, or a kubeconfig file.

use std::{
    env,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

/// Token that Kubernetes mounts into a pod.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the credentials are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessOptions {
    /// A kubeconfig file.
    File(PathBuf),
    /// The pod's own, if they are mounted.
    InCluster,
}

/// Why there is no access.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The kubeconfig file cannot be used.
    #[error("kubeconfig {path} cannot be used: {reason}; name a file with a cluster, a user and a current context")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The kubeconfig runs a program for its credentials.
    #[error(
        "kubeconfig {0} runs a program for its credentials, which the observer may not: use a token file or a client certificate"
    )]
    Program(PathBuf),
    /// The pod's credentials cannot be used.
    #[error(
        "the pod's credentials for the Kubernetes API cannot be used: {0}; set automountServiceAccountToken, or --kubernetes off"
    )]
    InCluster(String),
}

/// Credentials, read again when they are refused.
pub struct Access {
    options: AccessOptions,
    client: Mutex<Client>,
}

impl Access {
    /// Returns access by a file, or by the pod's own credentials; `None` if there are neither.
    ///
    /// # Errors
    /// There are credentials, and they cannot be used.
    pub async fn open(kubeconfig: Option<&Path>) -> Result<Option<Self>, AccessError> {
        let options = match kubeconfig {
            Some(path) => AccessOptions::File(path.to_owned()),
            None if Path::new(TOKEN).exists() && env::var_os("KUBERNETES_SERVICE_HOST").is_some() => {
                AccessOptions::InCluster
            }
            None => return Ok(None),
        };
        let client = Mutex::new(client(&options).await?);
        Ok(Some(Self { options, client }))
    }

    /// Returns the client; clones share connections.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Reads the credentials again.
    ///
    /// # Errors
    /// They cannot be used.
    pub async fn reload(&self) -> Result<(), AccessError> {
        let client = client(&self.options).await?;
        *self.client.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = client;
        Ok(())
    }

    /// Returns where the credentials are, for messages.
    #[must_use]
    pub fn source(&self) -> String {
        match &self.options {
            AccessOptions::File(path) => path.display().to_string(),
            AccessOptions::InCluster => "the pod's service account".to_owned(),
        }
    }
}

async fn client(options: &AccessOptions) -> Result<Client, AccessError> {
    let refused = |reason: String| match options {
        AccessOptions::File(path) => AccessError::File { path: path.clone(), reason },
        AccessOptions::InCluster => AccessError::InCluster(reason),
    };
    let mut config = match options {
        AccessOptions::InCluster => Config::incluster().map_err(|error| refused(error.to_string()))?,
        AccessOptions::File(path) => {
            let file = Kubeconfig::read_from(path).map_err(|error| refused(error.to_string()))?;
            let users = file.auth_infos.iter().filter_map(|user| user.auth_info.as_ref());
            // A process that starts programs would have to be allowed to: see the system call filter.
            if users.into_iter().any(|user| user.exec.is_some() || user.auth_provider.is_some()) {
                return Err(AccessError::Program(path.clone()));
            }
            let options = KubeConfigOptions::default();
            Config::from_custom_kubeconfig(file, &options).await.map_err(|error| refused(error.to_string()))?
        }
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // Each request has its own timeouts: a watch is silent for minutes.
    (config.read_timeout, config.write_timeout, config.default_retry) = (None, None, false);
    Client::try_from(config).map_err(|error| refused(error.to_string()))
}
