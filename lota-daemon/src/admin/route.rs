//! The paths of the admin port and the admin socket.

use hyper::Method;

use super::error::AdminError;

/// A path and its only method.
pub(super) struct Route<T: 'static>(pub(super) Method, pub(super) &'static str, pub(super) T);

/// Returns the target of a request.
pub(super) fn find<T: Copy>(routes: &[Route<T>], method: &Method, path: &str) -> Result<T, AdminError> {
    let Some(Route(allowed, _, target)) = routes.iter().find(|Route(_, known, _)| *known == path) else {
        let paths: Vec<_> = routes.iter().map(|Route(_, path, _)| *path).collect();
        return Err(AdminError::UnknownPath { available: paths.join(", ") });
    };
    match allowed {
        allowed if allowed == method => Ok(*target),
        &Method::POST => Err(AdminError::MethodNotAllowed { allowed: "POST" }),
        _ => Err(AdminError::MethodNotAllowed { allowed: "GET" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_paths_and_other_methods_are_told_apart() {
        let routes = [Route(Method::GET, "/status", 1), Route(Method::POST, "/reload", 2)];
        assert_eq!(find(&routes, &Method::GET, "/status").unwrap(), 1);
        assert_eq!(find(&routes, &Method::POST, "/reload").unwrap(), 2);
        for (method, path, allows) in [
            (Method::POST, "/status", "GET"),
            (Method::HEAD, "/status", "GET"),
            (Method::GET, "/reload", "POST"),
        ] {
            let error = find(&routes, &method, path).unwrap_err();
            assert!(
                matches!(error, AdminError::MethodNotAllowed { allowed } if allowed == allows),
                "{error:?}"
            );
        }
        for path in ["/", "/status/", "/statu", ""] {
            let error = find(&routes, &Method::GET, path).unwrap_err();
            assert!(matches!(error, AdminError::UnknownPath { .. }), "{path}: {error:?}");
        }
    }
}
