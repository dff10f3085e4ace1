//! Envoy's configuration as istiod makes it: virtual listeners, inbound and outbound clusters, mutual TLS, and an
//! access log with everything the access log wants.

use std::{net::IpAddr, path::Path};

use serde_json::{Value, json};

use crate::{
    mesh::{Family, Protocol, Service, Workload},
    redirect::Interception,
    sidecar::options::{Inbound, Kind, NodeId, Options, node_id},
};

/// Port of the plaintext listener of a gateway.
pub const GATEWAY_PLAIN: u16 = 8080;
/// Port of the TLS listener of a gateway.
pub const GATEWAY_TLS: u16 = 8443;
/// Port of the plaintext listener of a gateway behind a balancer that writes PROXY protocol headers.
pub const GATEWAY_PROXIED: u16 = 8081;
/// Port of every proxy's own metrics, at `/stats/prometheus`.
pub const METRICS: u16 = 15090;

/// Files that a configuration refers to, all in the proxy's directory.
pub struct Files<'a> {
    /// The mesh's authority.
    pub root: &'a Path,
    /// The proxy's certificate.
    pub certificate: &'a Path,
    /// Its key.
    pub key: &'a Path,
    /// Certificate of a gateway's TLS listener.
    pub door_certificate: &'a Path,
    /// Its key.
    pub door_key: &'a Path,
    /// Access log.
    pub log: &'a Path,
}

/// Returns the whole bootstrap configuration of the proxy of `workload`.
pub fn bootstrap(workload: &Workload, services: &[Service], options: &Options, files: &Files<'_>) -> Value {
    let builder = Builder { workload, services, options, files };
    let (mut listeners, mut clusters) = match options.kind {
        Kind::Sidecar => (
            [vec![builder.outbound_listener(), builder.inbound_listener()], builder.own_listeners()].concat(),
            [builder.outbound_clusters(), builder.inbound_clusters()].concat(),
        ),
        Kind::Gateway | Kind::Waypoint => (
            vec![
                builder.gateway_listener(GATEWAY_PLAIN, false),
                builder.gateway_listener(GATEWAY_TLS, true),
                builder.proxied_listener(),
            ],
            builder.outbound_clusters(),
        ),
    };
    listeners.push(builder.metrics_listener());
    clusters.push(static_cluster(OWN_METRICS, OWN_METRICS, &socket("127.0.0.1", 15000)));
    let mut bootstrap = json!({
        "admin": {"address": socket("127.0.0.1", 15000)},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    });
    if options.node_id == NodeId::Bootstrap {
        let cluster = format!("{}.{}", workload.name, workload.namespace);
        bootstrap["node"] = json!({"id": node_id(workload, options), "cluster": cluster});
    }
    bootstrap
}

struct Builder<'a> {
    workload: &'a Workload,
    services: &'a [Service],
    options: &'a Options,
    files: &'a Files<'a>,
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const ISTIO_ALPN: [&str; 5] = ["istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"];
const ISTIO_HTTP_ALPN: [&str; 3] = ["istio-http/1.0", "istio-http/1.1", "istio-h2"];
const SNIFFED_HTTP: [&str; 3] = ["http/1.0", "http/1.1", "h2c"];
const PASSTHROUGH: &str = "PassthroughCluster";
const INBOUND_PASSTHROUGH: &str = "InboundPassthroughCluster";
const OWN_METRICS: &str = "prometheus_stats";

impl Builder<'_> {
    fn outbound_listener(&self) -> Value {
        let mut chains = Vec::new();
        for (service, family) in self.services.iter().flat_map(|service| FAMILIES.map(|family| (service, family))) {
            let ip = service.address(family).ip();
            let prefix = json!([{"address_prefix": ip.to_string(), "prefix_len": if ip.is_ipv4() { 32 } else { 128 }}]);
            let to = |sniffed: Value, filter: Value| {
                let mut when = json!({"destination_port": service.port, "prefix_ranges": prefix});
                if !sniffed.is_null() {
                    when["application_protocols"] = sniffed;
                }
                json!({"filter_chain_match": when, "filters": [filter]})
            };
            let http = || self.http("outbound", &outbound_cluster(service, family, false));
            let tcp = || self.tcp("outbound", &outbound_cluster(service, family, true));
            match service.protocol {
                Protocol::Http | Protocol::Http2 => chains.push(to(Value::Null, http())),
                Protocol::Tcp => chains.push(to(Value::Null, tcp())),
                Protocol::Auto => chains.extend([to(json!(SNIFFED_HTTP), http()), to(Value::Null, tcp())]),
            }
        }
        for port in &self.options.passthrough_http_ports {
            chains.push(json!({
                "filter_chain_match": {"destination_port": port},
                "filters": [self.http("outbound", PASSTHROUGH)],
            }));
        }
        let declared: Vec<u16> =
            self.services.iter().filter(|s| s.protocol != Protocol::Auto).map(|s| s.port).collect();
        json!({
            "name": "virtualOutbound",
            "traffic_direction": "OUTBOUND",
            "address": socket("0.0.0.0", self.options.ports.outbound),
            "additional_addresses": [{"address": socket("::", self.options.ports.outbound)}],
            "listener_filters": [original_destination(), http_inspector(&declared)],
            "listener_filters_timeout": self.sniffing_timeout(),
            "continue_on_listener_filters_timeout": true,
            "filter_chains": chains,
            "default_filter_chain": {"filters": [self.tcp("outbound", PASSTHROUGH)]},
        })
    }

    /// Listeners at loopback addresses, for one service each.
    fn own_listeners(&self) -> Vec<Value> {
        let listener = |(port, name): &(u16, String)| {
            let service = self.services.iter().find(|service| service.name == *name).expect("declared before");
            let filter = match service.protocol {
                Protocol::Tcp => self.tcp("outbound", &outbound_cluster(service, Family::V4, true)),
                _ => self.http("outbound", &outbound_cluster(service, Family::V4, false)),
            };
            json!({
                "name": format!("127.0.0.1_{port}"),
                "traffic_direction": "OUTBOUND",
                "address": socket("127.0.0.1", *port),
                "additional_addresses": [{"address": socket("::1", *port)}],
                "filter_chains": [{"filters": [filter]}],
            })
        };
        self.options.own_listeners.iter().map(listener).collect()
    }

    fn inbound_listener(&self) -> Value {
        let mut chains = Vec::new();
        let mut own: Vec<&Service> =
            self.services.iter().filter(|service| service.endpoint.name == self.workload.name).collect();
        own.sort_by_key(|service| service.target_port);
        own.dedup_by_key(|service| service.target_port);
        for service in &own {
            chains.extend(self.inbound_chains(
                Some(service.target_port),
                service.protocol,
                &inbound_cluster(service.target_port),
            ));
        }
        chains.extend(self.inbound_chains(None, Protocol::Auto, INBOUND_PASSTHROUGH));
        let declared: Vec<u16> =
            own.iter().filter(|s| s.protocol != Protocol::Auto).map(|service| service.target_port).collect();
        let mut filters = vec![
            original_destination(),
            json!({
                "name": "envoy.filters.listener.tls_inspector",
                "typed_config": typed("listener.tls_inspector.v3.TlsInspector"),
            }),
            http_inspector(&declared),
        ];
        let transparent = self.options.interception == Interception::Tproxy;
        if transparent {
            let mut original_source = typed("listener.original_src.v3.OriginalSrc");
            original_source["mark"] = json!(1337);
            filters.push(json!({"name": "envoy.filters.listener.original_src", "typed_config": original_source}));
        }
        json!({
            "name": "virtualInbound",
            "traffic_direction": "INBOUND",
            "address": socket("0.0.0.0", self.options.ports.inbound),
            "additional_addresses": [{"address": socket("::", self.options.ports.inbound)}],
            "transparent": transparent,
            "listener_filters": filters,
            "listener_filters_timeout": self.sniffing_timeout(),
            "continue_on_listener_filters_timeout": true,
            "filter_chains": chains,
        })
    }

    /// The chains of one application port (or of all others): Istio's mutual TLS, plaintext (PERMISSIVE), and TLS of
    /// the application's own, which is passed on as TCP.
    fn inbound_chains(&self, port: Option<u16>, protocol: Protocol, cluster: &str) -> Vec<Value> {
        let chain = |tls: bool, application: &[&str], filter: Value, terminate: bool| {
            let mut when = json!({"transport_protocol": if tls { "tls" } else { "raw_buffer" }});
            if let Some(port) = port {
                when["destination_port"] = json!(port);
            }
            if !application.is_empty() {
                when["application_protocols"] = json!(application);
            }
            let mut chain = json!({"filter_chain_match": when, "filters": [filter]});
            if terminate {
                chain["transport_socket"] = self.downstream_tls();
            }
            chain
        };
        let (http, tcp) = (|| self.http("inbound", cluster), || self.tcp("inbound", cluster));
        let mut chains = match protocol {
            Protocol::Http | Protocol::Http2 => {
                vec![chain(true, &ISTIO_ALPN, http(), true), chain(false, &[], http(), false)]
            }
            Protocol::Tcp => vec![chain(true, &ISTIO_ALPN, tcp(), true), chain(false, &[], tcp(), false)],
            Protocol::Auto => vec![
                chain(true, &ISTIO_HTTP_ALPN, http(), true),
                chain(true, &["istio", "istio-peer-exchange"], tcp(), true),
                chain(false, &SNIFFED_HTTP, http(), false),
                chain(false, &[], tcp(), false),
            ],
        };
        chains.push(chain(true, &[], tcp(), false));
        chains
    }

    fn gateway_listener(&self, port: u16, tls: bool) -> Value {
        let routes: Vec<Value> = self
            .services
            .iter()
            .filter(|service| service.protocol != Protocol::Tcp)
            .map(|service| {
                let domains =
                    [service.name.clone(), service.host()].map(|host| [host.clone(), format!("{host}:*")]).concat();
                host(&service.name, &domains, &outbound_cluster(service, Family::V4, false))
            })
            .collect();
        let direction = if tls { "gateway-tls" } else { "outbound" };
        let mut chain = json!({"filters": [self.connection_manager(direction, routes)]});
        if tls {
            let mut context = tls_context("DownstreamTlsContext", self.files.door_certificate, self.files.door_key);
            context["common_tls_context"]["alpn_protocols"] = json!(["h2", "http/1.1"]);
            chain["transport_socket"] = tls_socket(context);
        }
        json!({
            "name": format!("0.0.0.0_{port}"),
            "traffic_direction": "OUTBOUND",
            "address": socket("0.0.0.0", port),
            "additional_addresses": [{"address": socket("::", port)}],
            "filter_chains": [chain],
        })
    }

    fn proxied_listener(&self) -> Value {
        let mut listener = self.gateway_listener(GATEWAY_PROXIED, false);
        listener["listener_filters"] = json!([{
            "name": "envoy.filters.listener.proxy_protocol",
            "typed_config": typed("listener.proxy_protocol.v3.ProxyProtocol"),
        }]);
        listener
    }

    /// Returns the listener of Envoy's own metrics for scrapers outside the pod.
    fn metrics_listener(&self) -> Value {
        let answer = match &self.options.metrics_page {
            Some(page) => ("direct_response", json!({"status": 200, "body": {"inline_string": page}})),
            None => ("route", json!({"cluster": OWN_METRICS})),
        };
        let route = json!({"match": {"prefix": "/stats/prometheus"}, answer.0: answer.1});
        let mut manager = typed("network.http_connection_manager.v3.HttpConnectionManager");
        merge(
            &mut manager,
            json!({
                "stat_prefix": "stats",
                "http_filters": [router()],
                "route_config": {"virtual_hosts": [{"name": "backend", "domains": ["*"], "routes": [route]}]},
            }),
        );
        let filter = json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": manager});
        json!({
            "address": socket("0.0.0.0", METRICS),
            "additional_addresses": [{"address": socket("::", METRICS)}],
            "filter_chains": [{"filters": [filter]}],
        })
    }

    fn outbound_clusters(&self) -> Vec<Value> {
        let mut clusters = vec![json!({
            "name": PASSTHROUGH, "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "10s",
        })];
        for (service, family) in self.services.iter().flat_map(|service| FAMILIES.map(|family| (service, family))) {
            for tcp in [false, true] {
                let name = outbound_cluster(service, family, tcp);
                let address = socket(&service.endpoint.ip(family).to_string(), service.target_port);
                let mut cluster = static_cluster(&name, &service.host(), &address);
                if !tcp {
                    cluster["typed_extension_protocol_options"] = http_protocol(service.protocol);
                }
                if service.mutual_tls {
                    cluster["transport_socket"] = self.upstream_tls(service, tcp);
                }
                clusters.push(cluster);
            }
        }
        clusters
    }

    fn inbound_clusters(&self) -> Vec<Value> {
        let mut ports: Vec<(u16, Protocol)> = self
            .services
            .iter()
            .filter(|service| service.endpoint.name == self.workload.name)
            .map(|service| (service.target_port, service.protocol))
            .collect();
        ports.sort_by_key(|(port, _)| *port);
        ports.dedup_by_key(|(port, _)| *port);
        let mut clusters = vec![self.to_application(INBOUND_PASSTHROUGH, Protocol::Auto)];
        for (port, protocol) in ports {
            let mut cluster = self.to_application(&inbound_cluster(port), protocol);
            if self.options.inbound == Inbound::Localhost {
                cluster["type"] = json!("STATIC");
                cluster["lb_policy"] = json!("ROUND_ROBIN");
                cluster["load_assignment"] = json!({
                    "cluster_name": "app",
                    "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket("127.0.0.1", port)}}]}],
                });
                cluster.as_object_mut().expect("an object").remove("upstream_bind_config");
            }
            clusters.push(cluster);
        }
        clusters
    }

    /// Returns the cluster of the original destination, from 127.0.0.6 or ::6 so that the redirection lets it pass.
    fn to_application(&self, name: &str, protocol: Protocol) -> Value {
        let mut cluster = json!({
            "name": name,
            "type": "ORIGINAL_DST",
            "lb_policy": "CLUSTER_PROVIDED",
            "connect_timeout": "10s",
            "circuit_breakers": circuit_breakers(),
            "typed_extension_protocol_options": http_protocol(protocol),
        });
        if self.options.interception != Interception::Tproxy {
            cluster["upstream_bind_config"] = json!({
                "source_address": {"address": "127.0.0.6", "port_value": 0},
                "extra_source_addresses": [{"address": {"address": "::6", "port_value": 0}}],
            });
        }
        cluster
    }

    fn upstream_tls(&self, service: &Service, tcp: bool) -> Value {
        let mut context = tls_context("UpstreamTlsContext", self.files.certificate, self.files.key);
        context["sni"] = json!(format!("outbound_.{}_._.{}", service.port, service.host()));
        let common = &mut context["common_tls_context"];
        common["alpn_protocols"] = match (tcp, service.protocol) {
            (true, _) => json!(["istio-peer-exchange", "istio"]),
            (false, Protocol::Http2) => json!(["istio-h2", "istio", "h2"]),
            // Istio's ALPN filter says the one that the client speaks. Both are HTTP at the other end, which then finds
            // out by the first bytes, since it has neither of these names itself.
            (false, Protocol::Auto) => json!(["istio-http/1.1", "istio-h2", "istio"]),
            (false, _) => json!(["istio-http/1.1", "istio", "http/1.1"]),
        };
        common["validation_context"] = validation(self.files.root, &json!({"exact": service.endpoint.spiffe()}));
        tls_socket(context)
    }

    fn downstream_tls(&self) -> Value {
        let mut context = tls_context("DownstreamTlsContext", self.files.certificate, self.files.key);
        context["require_client_certificate"] = json!(true);
        let common = &mut context["common_tls_context"];
        common["alpn_protocols"] = json!(["h2", "http/1.1"]);
        common["validation_context"] = validation(self.files.root, &json!({"prefix": "spiffe://cluster.local/"}));
        tls_socket(context)
    }

    fn http(&self, direction: &str, cluster: &str) -> Value {
        self.connection_manager(direction, vec![host("all", &["*".to_owned()], cluster)])
    }

    fn connection_manager(&self, direction: &str, hosts: Vec<Value>) -> Value {
        let mut manager = typed("network.http_connection_manager.v3.HttpConnectionManager");
        let fields = json!({
            "stat_prefix": direction,
            "codec_type": "AUTO",
            "http_protocol_options": {"accept_http_10": true, "enable_trailers": true},
            "http2_protocol_options": {"allow_connect": true},
            "normalize_path": false,
            "merge_slashes": false,
            "proxy_100_continue": true,
            "stream_idle_timeout": "0s",
            "request_timeout": "0s",
            "upgrade_configs": [{"upgrade_type": "websocket"}, {"upgrade_type": "CONNECT"}],
            "access_log": [self.access_log(direction, "http")],
            "http_filters": [grpc_stats(), router()],
            "route_config": {"virtual_hosts": hosts},
        });
        merge(&mut manager, fields);
        if direction == "inbound" {
            manager["forward_client_cert_details"] = json!("APPEND_FORWARD");
            manager["set_current_client_cert_details"] = json!({"subject": true, "uri": true, "dns": true});
        }
        json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": manager})
    }

    fn tcp(&self, direction: &str, cluster: &str) -> Value {
        let mut proxy = typed("network.tcp_proxy.v3.TcpProxy");
        merge(
            &mut proxy,
            json!({
                "stat_prefix": direction,
                "cluster": cluster,
                "idle_timeout": "0s",
                "access_log_options": {"flush_access_log_on_connected": true},
                "access_log": [self.access_log(direction, "tcp")],
            }),
        );
        json!({"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy})
    }

    fn access_log(&self, direction: &str, kind: &str) -> Value {
        let mut log = json!({"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"});
        merge(
            &mut log,
            json!({
                "path": self.files.log,
                "log_format": {"json_format": {
                    "direction": direction,
                    "kind": kind,
                    "type": "%ACCESS_LOG_TYPE%",
                    "protocol": "%PROTOCOL%",
                    "method": "%REQ(:METHOD)%",
                    "path": "%REQ(:PATH)%",
                    "authority": "%REQ(:AUTHORITY)%",
                    "content_type": "%REQ(CONTENT-TYPE)%",
                    "code": "%RESPONSE_CODE%",
                    // GRPC_STATUS_NUMBER makes one up where neither has one.
                    "grpc_header": "%RESP(GRPC-STATUS)%",
                    "grpc_trailer": "%TRAILER(GRPC-STATUS)%",
                    "grpc_messages": "%FILTER_STATE(envoy.filters.http.grpc_stats:TYPED)%",
                    "details": "%RESPONSE_CODE_DETAILS%",
                    "flags": "%RESPONSE_FLAGS%",
                    "termination": "%CONNECTION_TERMINATION_DETAILS%",
                    "transport_failure": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
                    "downstream_wire_received": "%DOWNSTREAM_WIRE_BYTES_RECEIVED%",
                    "downstream_wire_sent": "%DOWNSTREAM_WIRE_BYTES_SENT%",
                    "upstream_wire_received": "%UPSTREAM_WIRE_BYTES_RECEIVED%",
                    "upstream_wire_sent": "%UPSTREAM_WIRE_BYTES_SENT%",
                    "received": "%BYTES_RECEIVED%",
                    "sent": "%BYTES_SENT%",
                    "downstream_us": "%COMMON_DURATION(DS_RX_BEG:DS_TX_END:us)%",
                    "upstream_us": "%COMMON_DURATION(US_TX_BEG:US_RX_END:us)%",
                    "until_upstream_us": "%COMMON_DURATION(DS_RX_BEG:US_TX_BEG:us)%",
                    "start_us": "%START_TIME(%s.%6f)%",
                    "end_us": "%EMIT_TIME(%s.%6f)%",
                    "downstream_remote": "%DOWNSTREAM_REMOTE_ADDRESS%",
                    "downstream_local": "%DOWNSTREAM_LOCAL_ADDRESS%",
                    "upstream_host": "%UPSTREAM_HOST%",
                    "upstream_local": "%UPSTREAM_LOCAL_ADDRESS%",
                    "cluster": "%UPSTREAM_CLUSTER%",
                    "connection": "%CONNECTION_ID%",
                    "peer": "%DOWNSTREAM_PEER_URI_SAN%",
                    "server_name": "%REQUESTED_SERVER_NAME%",
                }},
            }),
        );
        merge(
            &mut log["log_format"]["json_format"],
            json!({
                "traceparent": "%REQ(TRACEPARENT)%",
                "b3": "%REQ(B3)%",
                "b3_trace": "%REQ(X-B3-TRACEID)%",
                "b3_span": "%REQ(X-B3-SPANID)%",
                "b3_sampled": "%REQ(X-B3-SAMPLED)%",
            }),
        );
        json!({"name": "envoy.access_loggers.file", "typed_config": log})
    }

    fn sniffing_timeout(&self) -> String {
        format!("{:.3}s", self.options.sniffing_timeout.as_secs_f64())
    }
}

fn outbound_cluster(service: &Service, family: Family, tcp: bool) -> String {
    let suffix = if family == Family::V6 { ";v6" } else { "" };
    let kind = if tcp { ";tcp" } else { "" };
    format!("outbound|{}||{}{kind}{suffix}", service.port, service.host())
}

fn inbound_cluster(port: u16) -> String {
    format!("inbound|{port}||")
}

fn static_cluster(name: &str, host: &str, address: &Value) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "10s",
        "circuit_breakers": circuit_breakers(),
        "load_assignment": {
            "cluster_name": host,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    })
}

fn router() -> Value {
    json!({"name": "envoy.filters.http.router", "typed_config": typed("http.router.v3.Router")})
}

/// Counts the messages of each call, as Istio has it (pilot/pkg/xds/filters/filters.go) and its counters of messages
/// use it.
fn grpc_stats() -> Value {
    let mut stats = typed("http.grpc_stats.v3.FilterConfig");
    stats["emit_filter_state"] = json!(true);
    json!({"name": "envoy.filters.http.grpc_stats", "typed_config": stats})
}

/// Returns a virtual host that forwards CONNECT as CONNECT, without timeouts and retries.
fn host(name: &str, domains: &[String], cluster: &str) -> Value {
    json!({
        "name": name,
        "domains": domains,
        "routes": [
            {"match": {"connect_matcher": {}}, "route": {"cluster": cluster, "timeout": "0s"}},
            {"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}},
        ],
    })
}

fn http_protocol(protocol: Protocol) -> Value {
    let http1 = json!({"enable_trailers": true});
    let http2 = json!({"allow_connect": true});
    let mut options = json!({"@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"});
    match protocol {
        Protocol::Http | Protocol::Tcp => options["explicit_http_config"] = json!({"http_protocol_options": http1}),
        Protocol::Http2 => options["explicit_http_config"] = json!({"http2_protocol_options": http2}),
        Protocol::Auto => {
            options["use_downstream_protocol_config"] =
                json!({"http_protocol_options": http1, "http2_protocol_options": http2});
        }
    }
    json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options})
}

/// Disables them, as Istio does without a destination rule; Envoy's defaults would refuse the 1,025th request.
fn circuit_breakers() -> Value {
    let most = u32::MAX;
    json!({"thresholds": [
        {"max_connections": most, "max_pending_requests": most, "max_requests": most, "max_retries": most},
    ]})
}

fn tls_context(kind: &str, certificate: &Path, key: &Path) -> Value {
    json!({
        "@type": format!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}"),
        "common_tls_context": {
            "tls_certificates": [{"certificate_chain": {"filename": certificate}, "private_key": {"filename": key}}],
        },
    })
}

fn validation(root: &Path, subject: &Value) -> Value {
    json!({
        "trusted_ca": {"filename": root},
        "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": subject}],
    })
}

fn tls_socket(context: Value) -> Value {
    json!({"name": "envoy.transport_sockets.tls", "typed_config": context})
}

fn original_destination() -> Value {
    json!({
        "name": "envoy.filters.listener.original_dst",
        "typed_config": typed("listener.original_dst.v3.OriginalDst"),
    })
}

/// Sniffs the ports that are not declared.
fn http_inspector(declared: &[u16]) -> Value {
    let rules: Vec<Value> =
        declared.iter().map(|port| json!({"destination_port_range": {"start": port, "end": port + 1}})).collect();
    let mut filter = json!({
        "name": "envoy.filters.listener.http_inspector",
        "typed_config": typed("listener.http_inspector.v3.HttpInspector"),
    });
    match rules.len() {
        0 => {}
        1 => filter["filter_disabled"] = rules[0].clone(),
        _ => filter["filter_disabled"] = json!({"or_match": {"rules": rules}}),
    }
    filter
}

fn typed(name: &str) -> Value {
    json!({"@type": format!("type.googleapis.com/envoy.extensions.filters.{name}")})
}

fn socket(address: &str, port: u16) -> Value {
    json!({"socket_address": {"address": address, "port_value": port}})
}

fn merge(into: &mut Value, fields: Value) {
    if let (Value::Object(into), Value::Object(fields)) = (into, fields) {
        into.extend(fields);
    }
}

/// Returns whether `ip` is an address that Istio's sidecars bind to reach the application.
pub fn is_magic_source(ip: IpAddr) -> bool {
    ip == IpAddr::from([127, 0, 0, 6]) || ip == IpAddr::from([0, 0, 0, 0, 0, 0, 0, 6_u16])
}
