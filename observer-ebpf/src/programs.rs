//! The programs, in the order a connection meets them. Every one lets everything pass.

/// A line in the observer's own log, in development builds (`cargo xtask build --kernel-log`) only.
macro_rules! note {
    ($ctx:expr, $($argument:tt)+) => {
        #[cfg(feature = "kernel-log")]
        aya_log_ebpf::debug!($ctx, $($argument)+);
    };
}

mod connect;
mod context;
mod early;
mod handshake;
mod http1;
mod http2;
mod maps;
mod owner;
mod packet;
mod preexisting;
mod record;
mod skb;
mod sock_ops;
mod sockopt;
