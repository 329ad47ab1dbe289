//! Claims of lab names: two labs of one name on one machine would remove each other's namespaces.

use std::{
    io::ErrorKind,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::signals::clean_up_on_signal;

/// Claims a lab name until this process ends, and removes the lab on SIGINT, SIGTERM or SIGHUP. Waits while another process
/// of this network namespace has the name.
///
/// # Errors
/// If the kernel refuses.
pub fn claim(name: &'static str) -> Result<()> {
    let mut socket = bind(name)?;
    if socket.is_none() {
        eprintln!("Waiting: another process uses the lab {name}");
    }
    while socket.is_none() {
        thread::sleep(Duration::from_millis(200));
        socket = bind(name)?;
    }
    // The kernel closes it at the end of the process, however that ends.
    std::mem::forget(socket);
    clean_up_on_signal(name)
}

/// Binds the abstract socket that stands for a name; returns `None` if another process has it.
fn bind(name: &str) -> Result<Option<UnixDatagram>> {
    let address = SocketAddr::from_abstract_name(format!("lota-lab-{name}"))?;
    match UnixDatagram::bind_addr(&address) {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(None),
        Err(error) => Err(error).with_context(|| format!("claiming the lab {name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_free_again_when_its_socket_is_closed() {
        let name = format!("test-{}", std::process::id());
        let held = bind(&name).unwrap();
        assert!(held.is_some() && bind(&name).unwrap().is_none());
        drop(held);
        assert!(bind(&name).unwrap().is_some());
    }
}
