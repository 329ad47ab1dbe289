//! nginx with fair tuning: as a cheap gateway, as an S3 cache with and without authorization, and as a reverse proxy in
//! front of such a cache.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::{
    lab::{Namespace, interrupt},
    tool,
};

/// A running nginx.
pub struct Nginx {
    master: Child,
}

impl Nginx {
    /// Starts nginx in a namespace, or in that of this process, with these blocks in its `http` section.
    ///
    /// # Errors
    /// If it does not start; `LOTA_NGINX` is the path of the program.
    pub fn start(
        namespace: Option<&Namespace>,
        folder: &Path,
        ready: SocketAddr,
        servers: &str,
    ) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let config = folder.join("nginx.conf");
        let shown = folder.display();
        // `tcp_nopush` would wait for delayed acknowledgements, above all on a loopback interface.
        let text = format!(
            "daemon off; user root; worker_processes auto; pid {shown}/pid; error_log {shown}/error.log warn;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; sendfile on; tcp_nopush off; keepalive_requests 100000000;\n\
             client_body_temp_path {shown}/body; proxy_temp_path {shown}/proxy; fastcgi_temp_path {shown}/fastcgi;\n\
             uwsgi_temp_path {shown}/uwsgi; scgi_temp_path {shown}/scgi;\n{servers}\n}}\n"
        );
        fs::write(&config, text)?;
        let program = tool("LOTA_NGINX")?;
        let mut command = namespace.map_or_else(|| Command::new(&program), |within| within.command(&program));
        command.arg("-c").arg(&config).arg("-p").arg(folder).arg("-e").arg(folder.join("error.log"));
        let mut master = command.spawn()?;
        let since = Instant::now();
        loop {
            ensure!(master.try_wait()?.is_none(), "nginx has ended; see {shown}/error.log");
            let connects = move || TcpStream::connect(ready).is_ok();
            let connects = namespace.map_or_else(|| Ok(connects()), |within| within.run(connects))?;
            if connects {
                return Ok(Self { master });
            }
            ensure!(since.elapsed() < Duration::from_secs(10), "nginx does not listen on {ready}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Returns its process ids.
    ///
    /// # Errors
    /// If it has ended.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let master = self.master.id();
        let children = fs::read_to_string(format!("/proc/{master}/task/{master}/children"))?;
        Ok(children.split_whitespace().filter_map(|pid| pid.parse().ok()).chain([master]).collect())
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        if interrupt(&mut self.master).is_err() {
            let _ = self.master.kill();
        }
        let _ = self.master.wait();
    }
}

/// Returns the configuration of a gateway that serves only these URLs.
#[must_use]
pub fn gateway(listen: SocketAddr, root: &Path, urls: &[String]) -> String {
    let known: String = urls.iter().map(|url| format!("\"{url}\" 1;\n")).collect();
    format!(
        "map_hash_bucket_size 1024; map_hash_max_size 4096;\nmap $request_uri $known {{ default 0;\n{known}}}\n\
         server {{ listen {listen} backlog=4096; root {}; add_header x-amz-request-id $request_id always;\n\
         location / {{ if ($known = 0) {{ return 403; }} }} }}",
        root.display()
    )
}

/// Returns the configuration of a cache without authorization, and of one that authorizes each request at the gateway.
#[must_use]
pub fn caches(open: SocketAddr, authorizing: SocketAddr, gateway: SocketAddr, folder: &Path) -> String {
    let server = |listen: SocketAddr, auth: &str| {
        format!(
            "server {{ listen {listen} backlog=4096;\n\
             location / {{ {auth} proxy_cache c; proxy_cache_key $uri; proxy_cache_valid 200 1d;\n\
             proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host cwlota.com;\n\
             proxy_pass http://gw; }}\n\
             location = /_authorize {{ internal; proxy_method HEAD; proxy_pass_request_body off;\n\
             proxy_set_header Content-Length \"\"; proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
             proxy_set_header Host cwlota.com; proxy_pass http://gw$request_uri; }} }}\n"
        )
    };
    format!(
        "proxy_cache_path {}/cache keys_zone=c:10m max_size=8g inactive=1d use_temp_path=off;\n\
         upstream gw {{ server {gateway}; keepalive 128; keepalive_requests 100000000; }}\n{}{}",
        folder.display(),
        server(open, ""),
        server(authorizing, "auth_request /_authorize;")
    )
}

/// Returns the configuration of a reverse proxy.
#[must_use]
pub fn forward(listen: SocketAddr, to: SocketAddr) -> String {
    format!(
        "upstream up {{ server {to}; keepalive 128; keepalive_requests 100000000; }}\n\
         server {{ listen {listen} backlog=4096; location / {{ proxy_buffering on; proxy_max_temp_file_size 0;\n\
         proxy_buffers 64 64k; proxy_buffer_size 64k; proxy_http_version 1.1;\n\
         proxy_set_header Connection \"\"; proxy_set_header Host cwlota.com; proxy_pass http://up; }} }}"
    )
}

/// Returns the folder of an nginx instance.
#[must_use]
pub fn folder(lab: &Path, name: &str) -> PathBuf {
    lab.join(format!("nginx-{name}"))
}
