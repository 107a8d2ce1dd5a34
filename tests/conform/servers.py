"""Other HTTP servers and parsers on loopback, each of which answers every request that it accepts.

nginx, HAProxy, Apache and node are started in a temporary folder; one that is not installed is left out. A server's
reading of a payload is how many requests it accepted, and how it ended: `whole` (it took every byte), `refused`
(an error response, or closed before the last byte), or `closed` (a request asked for it).
"""
import ctypes, pathlib, shutil, signal, socket, subprocess, tempfile, time

# Statuses that servers send instead of an answer to the request: it is not one, or it is not framed.
REFUSALS = {400, 408, 411, 413, 414, 417, 431, 501, 505}
PATIENCE = 10.0
PR_SET_PDEATHSIG = 1

NGINX = """
daemon off; pid %(folder)s/nginx.pid; error_log stderr crit; worker_processes 1;
events { worker_connections 512; }
http {
  access_log off; keepalive_requests 1000000; client_body_temp_path %(folder)s; proxy_temp_path %(folder)s;
  fastcgi_temp_path %(folder)s; uwsgi_temp_path %(folder)s; scgi_temp_path %(folder)s;
  server { listen 127.0.0.1:%(port)d; location / { return 200 "ok"; } }
}
"""
HAPROXY = """
global
  maxconn 512
defaults
  mode http
  option http-buffer-request
  timeout client 10s
  timeout connect 1s
  timeout server 10s
  timeout http-request 10s
frontend echo
  bind 127.0.0.1:%(port)d
  http-request return status 200 content-type text/plain string "ok"
"""
APACHE = """
ServerName localhost
ServerRoot %(folder)s
PidFile %(folder)s/apache.pid
ErrorLog /dev/null
Listen 127.0.0.1:%(port)d
User nobody
Group nogroup
LoadModule mpm_event_module %(modules)s/mod_mpm_event.so
LoadModule authz_core_module %(modules)s/mod_authz_core.so
LoadModule rewrite_module %(modules)s/mod_rewrite.so
DocumentRoot %(folder)s
MaxKeepAliveRequests 0
RewriteEngine on
RewriteRule .* - [R=200]
"""
NODE = """
const server = require('http').createServer((request, response) => {
  request.resume();
  request.on('end', () => response.end('ok'));
});
server.maxRequestsPerSocket = 0;
server.listen(%(port)d, '127.0.0.1');
"""
APACHE_MODULES = '/usr/lib/apache2/modules'


def spawn(command, output=subprocess.DEVNULL):
    """Starts a program that ends with this one, also if this one is killed."""
    libc = ctypes.CDLL(None)
    bind = lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    return subprocess.Popen(command, stdout=output, stderr=output, preexec_fn=bind)


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def commands(folder):
    """The name, the command line and the port of each server that is installed, and those that are not."""
    found, missing = [], []
    for name, text in ('nginx', NGINX), ('haproxy', HAPROXY), ('apache2', APACHE), ('node', NODE):
        path = shutil.which(name) or shutil.which(name, path='/usr/sbin')
        if path is None:
            missing.append(name)
            continue
        port = free_port()
        file = folder / name
        file.write_text(text % {'folder': folder, 'port': port, 'modules': APACHE_MODULES})
        arguments = {
            'nginx': ['-p', str(folder), '-e', 'stderr', '-c', str(file)],
            'haproxy': ['-db', '-q', '-f', str(file)],
            'apache2': ['-X', '-f', str(file)],
            'node': [str(file)],
        }[name]
        found.append((name, [path, *arguments], port))
    return found, missing


def version_of(name):
    """The version that the program reports."""
    path = shutil.which(name) or shutil.which(name, path='/usr/sbin')
    flag = {'nginx': '-v', 'node': '--version'}.get(name, '-v')
    run = subprocess.run([path, flag], capture_output=True, text=True)
    words = (run.stdout + run.stderr).replace('/', ' ').split()
    return next((word.lstrip('v') for word in words if word.lstrip('v')[:1].isdigit()), '')


class Servers:
    """The servers, until the block ends."""

    def __enter__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.folder.chmod(0o755)
        found, self.missing = commands(self.folder)
        self.ports = {name: port for name, _, port in found}
        self.processes = [spawn(command) for _, command, _ in found]
        probe = b'GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n'
        for (name, command, port), process in zip(found, self.processes):
            for _ in range(400):
                try:
                    if responses(port, probe)[0] == [200]:
                        break
                except OSError:
                    pass
                if process.poll() is not None:
                    self.__exit__()
                    raise SystemExit(f'{name} ended with {process.returncode}: {" ".join(command)}')
                time.sleep(0.05)
            else:
                self.__exit__()
                raise SystemExit(f'{name} does not answer')
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def exchange(port, data):
    """All bytes of the response to a payload after which the sending side is closed, and whether it was reset."""
    got, is_reset = b'', False
    with socket.create_connection(('127.0.0.1', port), PATIENCE) as connection:
        connection.settimeout(PATIENCE)
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                got += part
        except (ConnectionError, TimeoutError):
            is_reset = True
    return got, is_reset


def split(got):
    """Status, fields and body of each final response."""
    while got:
        top, separator, rest = got.partition(b'\r\n\r\n')
        words = top.split(None, 2)
        if not separator or len(words) < 2 or not words[0].startswith(b'HTTP/1.') or not words[1].isdigit():
            # HTTP/0.9, or an error page without a head.
            yield 400, {}, got
            return
        status = int(words[1])
        if status < 200:
            got = rest
            continue
        lines = (line.partition(b':') for line in top.split(b'\r\n')[1:])
        fields = {name.strip().lower(): value.strip().lower() for name, _, value in lines}
        if fields.get(b'transfer-encoding') == b'chunked':
            body, got = unchunk(rest)
        else:
            length = 0 if status in (204, 304) else int(fields.get(b'content-length', len(rest)))
            body, got = rest[:length], rest[length:]
        yield status, fields, body


def unchunk(rest):
    body = b''
    while True:
        size, _, rest = rest.partition(b'\r\n')
        length = int(size.split(b';')[0] or b'0', 16)
        body, rest = body + rest[:length], rest[length + 2:]
        if length == 0:
            return body, rest


def responses(port, data):
    """The statuses of the final responses, whether the last one closes the connection, and whether it was reset."""
    got, is_reset = exchange(port, data)
    found = list(split(got))
    closes = bool(found) and found[-1][1].get(b'connection') == b'close'
    return [status for status, _, _ in found], closes, is_reset


def reading(port, data):
    """How many requests a server accepted, and how it ended."""
    statuses, closes, is_reset = responses(port, data)
    accepted = 0
    for status in statuses:
        if status in REFUSALS:
            return accepted, 'refused'
        accepted += 1
    if is_reset or not statuses:
        return accepted, 'refused'
    return accepted, 'closed' if closes else 'whole'
