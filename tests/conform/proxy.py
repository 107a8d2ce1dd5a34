"""The proxy with a document on disk, and with a certificate if it serves TLS."""
import datetime, ipaddress, json, pathlib, shutil, subprocess, tempfile, time

import servers

CLIENT_KEY, SERVER_KEY = 'conform-client-key', 'ser.conform-server-key'


def certificate(folder):
    """A certificate for localhost, of an authority of this run. The files of certificate, key and authority."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now = datetime.datetime.now(datetime.timezone.utc)

    def issue(name, issuer, signer, key, is_authority):
        subject = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, name)])
        usage = dict.fromkeys(['digital_signature', 'content_commitment', 'key_encipherment', 'data_encipherment', 'key_agreement',
                               'key_cert_sign', 'crl_sign', 'encipher_only', 'decipher_only'], False)
        usage['key_cert_sign' if is_authority else 'digital_signature'] = True
        builder = (x509.CertificateBuilder().subject_name(subject).issuer_name(issuer or subject).public_key(key.public_key())
                   .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
                   .not_valid_after(now + datetime.timedelta(days=80))
                   .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
                   .add_extension(x509.KeyUsage(**usage), critical=True)
                   .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
                   .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False))
        if not is_authority:
            names = [x509.DNSName('localhost'), x509.IPAddress(ipaddress.ip_address('127.0.0.1'))]
            builder = (builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
                       .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False))
        return builder.sign(signer, hashes.SHA256())

    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = issue('conformance authority', None, authority_key, authority_key, True)
    own = issue('localhost', authority.subject, authority_key, key, False)
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    files = {'certificate.pem': own.public_bytes(pem), 'key.pem': secret, 'authority.pem': authority.public_bytes(pem)}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / 'key.pem').chmod(0o600)
    return [folder / name for name in files]


class Proxy:
    """The proxy, until the block ends."""

    def __init__(self, binary, document, tls=False, **settings):
        self.binary, self.document, self.tls, self.settings = binary, document, tls, settings

    def __enter__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.port = servers.free_port()
        server = {'host': '127.0.0.1', 'port': self.port}
        if self.tls:
            own, key, self.authority = certificate(self.folder)
            server['tls'] = {'cert': str(own), 'key': str(key)}
        (self.folder / 'document.json').write_text(json.dumps(self.document))
        pair = {'client_side_key': CLIENT_KEY, 'server_side_key': SERVER_KEY, 'document_path': str(self.folder / 'document.json')}
        config = {'environment_key_pairs': [pair], 'server': server, 'cores': 1, **self.settings}
        (self.folder / 'config.json').write_text(json.dumps(config))
        self.log = open(self.folder / 'log', 'w+')
        command = [self.binary, 'serve', '--config', str(self.folder / 'config.json')]
        self.process = servers.spawn(command, self.log)
        health = [self.binary, 'health', '--config', str(self.folder / 'config.json')]
        for _ in range(600):
            if self.process.poll() is not None:
                break
            if subprocess.run(health, capture_output=True).returncode == 0:
                return self
            time.sleep(0.1)
        self.process.kill()
        self.log.seek(0)
        raise SystemExit(f'the proxy did not start:\n{self.log.read()}')

    def __exit__(self, *_):
        is_alive = self.process.poll() is None
        self.process.terminate()
        self.process.wait(20)
        self.log.seek(0)
        text = self.log.read()
        shutil.rmtree(self.folder, ignore_errors=True)
        if not is_alive or 'panic' in text:
            raise SystemExit(f'the proxy died or panicked:\n{text}')

    @property
    def origin(self):
        return f'{"https" if self.tls else "http"}://127.0.0.1:{self.port}'
