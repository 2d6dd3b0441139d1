import time
def test_x(start_openai, install):
    t=time.monotonic()
    openai = start_openai(days=3, services=False, projects=1, keys_per_project=1)
    installation = install(openai); installation.connect(plan="trial")
    print("connect", time.monotonic()-t)
    for _ in range(3):
        t=time.monotonic(); installation.refresh(); print(time.monotonic()-t)
