"""Checks one resource with REDbot: caching.py URL [KEY]. Prints its notes as a list of JSON."""
import configparser, json, sys

import thor
from redbot.resource import HttpResource

config = configparser.ConfigParser()
config.read_dict({'redbot': {'enable_local_access': 'True'}})
resource = HttpResource(config['redbot'])
resource.set_request(sys.argv[1], headers=[('X-Environment-Key', key) for key in sys.argv[2:]])


@thor.events.on(resource)
def check_done():
    notes = [{'id': type(note).__name__, 'level': note.level.value, 'text': str(note.summary)} for note in resource.response.notes]
    supports = {'If-None-Match': resource.inm_support, 'If-Modified-Since': resource.ims_support, 'gzip': resource.gzip_support}
    print(json.dumps({'status': resource.response.status_code, 'notes': notes, 'supports': supports}))
    thor.stop()


resource.check()
thor.run()
